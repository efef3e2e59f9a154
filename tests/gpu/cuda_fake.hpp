// CUDA's runtime and cuDNN as far as gpu/cuda_*.cpp calls them, on the CPU, linked in place of the real ones: kernels
// are the same lines of code, convolutions are their definitions. Work waits on its stream until somebody waits for it,
// so that what is read too early is wrong; whatever is lent is counted until it is given back. Several streams go on in
// an order that is drawn: any that their events allow.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace coppice::gpu::fake {

// Which graphs of operations cuDNN has engines for.
enum class Engines { all, with_residual, convolution_alone, none };

void reset();  // forgets calls, failures and refusals

const std::vector<std::string>& calls();  // by name, in order: of functions that can fail; kernels by their jobs' names
std::size_t count(const std::string& call);
std::size_t lent();                    // memory and handles that have not been given back
void fail(std::size_t call);           // this one, counted from 1 since reset; 0: none
const std::string& failed();           // its name, once it has failed
void refuse(const std::string& call);  // all calls of this name fail from now on
void engines(Engines which);

// From now on until reset: so many devices, all new enough. Otherwise there are two, of which the second is too old.
void devices(int count);
void no_peers(int from, int to);  // the first cannot reach the second's memory
bool reached(int from, int to);   // peer access was turned on
void draw(unsigned seed);         // the order in which streams go on; 0: as they are waited for
void advance(std::size_t works);  // runs so many works of any streams, as a GPU does whether or not somebody waits

}  // namespace coppice::gpu::fake
