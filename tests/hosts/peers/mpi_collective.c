// mpi_collective OP REPEATS BYTES: times MPI_Bcast (OP broadcast, of rank 0) or MPI_Allreduce (allreduce, a sum).
//
// Rank 0 prints "seconds S" for each repetition: from the moment that all ranks are ready to that at which the last one
// has its result. Every element of every rank's result is checked, outside of that time; a wrong one ends all.
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { kWarmUpElements = 1 << 18 };  // 1 MiB: opens the connections of every algorithm that cuts into segments

// Whole numbers, below 2^24 even when summed over 500 ranks: floats hold them exactly, in any order of adding.
// They differ between repetitions, so that what is left of the one before is not taken for a result.
static float element(size_t index, int repeat) { return (float)(index % 97 + (size_t)repeat % 31 + 1); }

static void fill(float* data, size_t count, int factor, int repeat) {
  for (size_t i = 0; i < count; ++i) data[i] = (float)factor * element(i, repeat);
}

static void check(const float* data, size_t count, int factor, int repeat, int rank) {
  for (size_t i = 0; i < count; ++i) {
    const float wanted = (float)factor * element(i, repeat);
    if (data[i] == wanted) continue;
    fprintf(stderr, "rank %d: element %zu of repetition %d is %g, not %g\n", rank, i, repeat, data[i], wanted);
    MPI_Abort(MPI_COMM_WORLD, 3);
  }
}

// Seconds of the slowest rank, at rank 0.
static double timed(int allreduce, float* data, float* result, size_t count) {
  MPI_Barrier(MPI_COMM_WORLD);
  const double begun = MPI_Wtime();
  if (allreduce)
    MPI_Allreduce(data, result, (int)count, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
  else
    MPI_Bcast(data, (int)count, MPI_FLOAT, 0, MPI_COMM_WORLD);
  const double mine = MPI_Wtime() - begun;
  double slowest = 0;
  MPI_Reduce(&mine, &slowest, 1, MPI_DOUBLE, MPI_MAX, 0, MPI_COMM_WORLD);
  return slowest;
}

int main(int argc, char** argv) {
  MPI_Init(&argc, &argv);
  int rank = 0, ranks = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &ranks);
  if (argc != 4) {
    if (rank == 0) fprintf(stderr, "usage: mpi_collective broadcast|allreduce REPEATS BYTES\n");
    MPI_Abort(MPI_COMM_WORLD, 2);
  }
  const int allreduce = strcmp(argv[1], "allreduce") == 0;
  const int repeats = atoi(argv[2]);
  const size_t count = (size_t)atol(argv[3]) / sizeof(float);
  float* data = malloc(count * sizeof(float));
  float* result = malloc(count * sizeof(float));
  if (!data || !result) {
    fprintf(stderr, "rank %d: no memory for two buffers of %s bytes\n", rank, argv[3]);
    MPI_Abort(MPI_COMM_WORLD, 2);
  }
  for (int repeat = -1; repeat < repeats; ++repeat) {
    const int warm_up = repeat < 0;
    const size_t length = warm_up && count > kWarmUpElements ? kWarmUpElements : count;
    const int number = repeat + 1;
    fill(data, length, allreduce ? rank + 1 : rank == 0, number);  // of a broadcast, nothing but zeros at the others
    memset(result, 0, length * sizeof(float));
    const double seconds = timed(allreduce, data, result, length);
    check(allreduce ? result : data, length, allreduce ? ranks * (ranks + 1) / 2 : 1, number, rank);
    MPI_Barrier(MPI_COMM_WORLD);  // a time is printed once every rank has found its contents right
    if (rank == 0 && !warm_up) {
      printf("seconds %.6f\n", seconds);
      fflush(stdout);
    }
  }
  free(data);
  free(result);
  MPI_Finalize();
  return 0;
}
