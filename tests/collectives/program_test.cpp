#include "collectives/program.hpp"

#include <gtest/gtest.h>

#include "collectives/bottleneck.hpp"
#include "collectives/builtin.hpp"
#include "collectives/planner.hpp"
#include "tests/collectives/sample_topologies.hpp"

namespace coppice::collectives {
namespace {

Program program_of(const Topology& topology, Operation operation, std::int64_t bytes, std::int64_t chunks = 0) {
  const auto plan = make_plan(topology, {.operation = operation});
  return make_program(*plan, topology, {.element = Element::float32, .bytes = bytes, .chunks = chunks}).value();
}

TEST(Program, SharesAreWholeElementsInProportionToRatesAndCoverTheBufferOnce) {
  const Topology box = dgx_1v();
  const auto plan = make_plan(box, {.operation = Operation::allreduce}).value();
  const Program program = program_of(box, Operation::allreduce, 4'000'004, 50);
  ASSERT_TRUE(check(program));
  std::int64_t total = 0;
  ASSERT_EQ(program.trees.size(), plan.trees.size());
  for (std::size_t i = 0; i < plan.trees.size(); ++i) {
    std::int64_t own = 0, chunked = 0;
    for (const Stretch& stretch : program.trees[i].share) own += stretch.bytes;
    for (std::int64_t chunk = 0; chunk < chunk_count(program.trees[i]); ++chunk) chunked += chunk_at(program.trees[i], chunk).bytes;
    EXPECT_EQ(own, chunked);
    EXPECT_EQ(own % 4, 0);
    EXPECT_NEAR(static_cast<double>(own), plan.trees[i].rate.get_d() / plan.rate.get_d() * 4'000'004, 8);
    EXPECT_NEAR(static_cast<double>(chunk_count(program.trees[i])), 50, 1);
    total += own;
  }
  EXPECT_EQ(total, 4'000'004);
}

TEST(Program, ASmallBufferTakesOneTreeAndALargeOneAll) {
  Topology box = dgx_1v();
  box.unit = "Gbit/s";
  EXPECT_EQ(program_of(box, Operation::allreduce, 4'096).trees.size(), 1U);
  EXPECT_EQ(program_of(box, Operation::broadcast, 4'096).trees.size(), 1U);
  const auto all = make_plan(box, {.operation = Operation::allreduce})->trees.size();
  EXPECT_EQ(program_of(box, Operation::allreduce, 64 << 20).trees.size(), all);
  EXPECT_EQ(program_of(box, Operation::allreduce, 4'096, 3).trees.size(), all) << "chunks are asked for";
}

// Of the eight trees of a star each has an eighth of its links; alone it has all of them.
TEST(Program, ATreeAloneIsJudgedByItsLinksNotByItsShareOfThem) {
  const Topology box = testing::star(8, 10, "Gbit/s");
  const auto plan = make_plan(box, {.operation = Operation::allreduce}).value();
  ASSERT_GT(plan.trees.size(), 1U);
  EXPECT_GT(bottleneck(plan, plan.trees[0], box), plan.trees[0].rate);
  EXPECT_EQ(program_of(box, Operation::allreduce, 4'096).trees.size(), 1U);

  const Topology line = testing::direct(3, {{0, 1, 4}, {1, 2, 6}});
  const auto down = make_plan(line, {.operation = Operation::broadcast, .root = 0}).value();
  EXPECT_EQ(bottleneck(down, down.trees[0], line), 4);
}

TEST(Program, EdgesBearTheAddressesOfTheirLinksBothWays) {
  Topology pair = single_switch({"a", "b"});
  pair.nodes.pop_back();
  pair.links = {{.from = 0, .to = 1, .capacity = 1, .kind = "", .duplex = true, .from_address = "10.0.0.1", .to_address = "10.0.0.2"}};
  const Program program = program_of(pair, Operation::allreduce, 400);
  for (const TreeProgram& tree : program.trees) {
    for (const auto* edges : {&tree.up, &tree.down}) {
      ASSERT_EQ(edges->size(), 1U);
      const RankEdge& edge = edges->front();
      EXPECT_EQ(edge.from_address, edge.from == 0 ? "10.0.0.1" : "10.0.0.2");
      EXPECT_EQ(edge.to_address, edge.to == 0 ? "10.0.0.1" : "10.0.0.2");
    }
  }
}

TEST(Program, ABufferThatDoesNotDivideIsRefusedByName) {
  const auto plan = make_plan(dgx_1p(), {.operation = Operation::allgather}).value();
  const auto odd = make_program(plan, dgx_1p(), {.element = Element::float32, .bytes = 36});
  ASSERT_FALSE(odd);
  EXPECT_NE(odd.error().what.find("8 ranks"), std::string::npos) << odd.error().what;
  EXPECT_TRUE(make_program(plan, dgx_1p(), {.element = Element::float32, .bytes = 64}));
}

TEST(Program, WhatComesFromElsewhereIsCheckedForEverythingThatARelayRestsOn) {
  const Program good = program_of(dgx_1p(), Operation::allreduce, 8'000, 5);
  ASSERT_TRUE(check(good));
  const auto refused = [&](auto change) {
    Program bad = good;
    change(bad);
    return !check(bad).has_value();
  };
  EXPECT_TRUE(refused([](Program& p) { p.ranks = 0; }));
  EXPECT_TRUE(refused([](Program& p) { p.ranks = 7; }));
  EXPECT_TRUE(refused([](Program& p) { p.bytes = -1; }));
  EXPECT_TRUE(refused([](Program& p) { p.operation = Operation::broadcast; }));
  EXPECT_TRUE(refused([](Program& p) { p.trees[0].root = 8; }));
  EXPECT_TRUE(refused([](Program& p) { p.trees[0].keeper = 9; }));
  EXPECT_TRUE(refused([](Program& p) { p.trees[0].chunk_bytes = 0; }));
  EXPECT_TRUE(refused([](Program& p) { p.trees[0].chunk_bytes = 6; }));
  EXPECT_TRUE(refused([](Program& p) { p.trees[0].chunk_bytes = kChunkBytesMax + 4; }));
  EXPECT_TRUE(refused([](Program& p) { p.trees[0].share[0].offset = 7'999; }));
  EXPECT_TRUE(refused([](Program& p) { p.trees[0].share[0].bytes = 1 << 20; }));
  EXPECT_TRUE(refused([](Program& p) { p.trees[0].share.push_back(p.trees[1].share[0]); }));
  EXPECT_TRUE(refused([](Program& p) { p.trees[0].down[2].to = p.trees[0].down[1].to; }));
  EXPECT_TRUE(refused([](Program& p) { std::swap(p.trees[0].up.front(), p.trees[0].up.back()); }));
  EXPECT_TRUE(refused([](Program& p) { p.trees[0].down[0].from_address = std::string(300, 'x'); }));
}

TEST(Program, AChunkTakesNoLongerThanASecond) {
  Topology slow = dgx_1v();
  slow.unit = "Mbit/s";  // 25 to 50 of them a link
  const Program program = program_of(slow, Operation::broadcast, std::int64_t{64} << 20, 1);
  const auto plan = make_plan(slow, {.operation = Operation::broadcast, .root = 0});
  ASSERT_TRUE(plan);
  ASSERT_EQ(program.trees.size(), plan->trees.size());
  for (const TreeProgram& tree : program.trees) {
    EXPECT_LE(tree.chunk_bytes, tree.bytes_per_s);
    EXPECT_GT(tree.chunk_bytes, tree.bytes_per_s * 9 / 10);
  }
}

TEST(Program, WhatIsLeftIsDoneOnceAndWhatIsKnownIsOnlyPassedOn) {
  const Topology box = dgx_1v();
  const Program program = program_of(box, Operation::allreduce, 1 << 20, 10);
  std::vector<RankProgress> progress(8, {false, std::vector<std::int64_t>(program.trees.size(), 3)});
  progress[5].known.assign(program.trees.size(), 6);
  const Replan again = [&](Operation operation, int root) { return make_plan(box, {.operation = operation, .root = root}); };
  const auto rest = resume(program, progress, -1, again, hosts(box), box, 10);
  ASSERT_TRUE(rest) << rest.error().what;
  ASSERT_TRUE(check(*rest));
  std::int64_t combined = 0, passed = 0, known = 0, both = 0;
  for (const TreeProgram& tree : rest->trees)
    for (const Stretch& stretch : tree.share) (tree.known_at_root ? passed : combined) += stretch.bytes;
  for (const TreeProgram& tree : program.trees) {
    for (int chunk = 0; chunk < 3; ++chunk) both += chunk_at(tree, chunk).bytes;
    for (int chunk = 3; chunk < 6; ++chunk) known += chunk_at(tree, chunk).bytes;
  }
  EXPECT_EQ(passed, known);
  EXPECT_EQ(combined, (1 << 20) - known - both);
  for (const TreeProgram& tree : rest->trees) {
    EXPECT_TRUE(!tree.known_at_root || tree.root == 5);
    // Chunks do not shrink with what is left: three tenths of the bytes in three of the ten chunks, or in one.
    EXPECT_LE(chunk_count(tree), tree.known_at_root ? 3 + static_cast<int>(tree.share.size()) : 10);
  }

  // A caller that has its result has taken its contribution along: nothing can be combined any more.
  progress[2].over = true;
  EXPECT_FALSE(resume(program, progress, -1, again, hosts(box), box, 10));
}

TEST(Program, ALinkThatFailsOneWayKeepsTheOther) {
  const Topology box = dgx_1p();
  const Topology half = with_capacity(box, 0, 1, Rational(1, 2));
  const auto carries = [](const Topology& topology, int from, int to) {
    Rational sum;
    for (const Link& link : topology.links) {
      if (link.from == from && link.to == to) sum += link.capacity;
      if (link.duplex && link.from == to && link.to == from) sum += link.capacity;
    }
    return sum;
  };
  EXPECT_EQ(carries(half, 0, 1), Rational(1, 2));
  EXPECT_EQ(carries(half, 1, 0), Rational(1));
  EXPECT_EQ(carries(with_capacity(half, 0, 1, 0), 0, 1), Rational(0));
  EXPECT_TRUE(validate(half));
}

}  // namespace
}  // namespace coppice::collectives
