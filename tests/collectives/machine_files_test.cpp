#include "collectives/machine_files.hpp"

#include <gtest/gtest.h>

#include <fstream>
#include <random>

#include "collectives/builtin.hpp"
#include "collectives/planner.hpp"
#include "collectives/schedule.hpp"
#include "collectives/verify.hpp"
#include "tests/collectives/sample_topologies.hpp"

namespace coppice::collectives {
namespace {

// Four V100 of a DGX-1V as NCCL writes them: two PCIe switches below one CPU, a network card below the second.
constexpr const char* kNccl = R"(<system version="1">
  <cpu numaid="0" affinity="0000,0fffff00" arch="x86_64" vendor="GenuineIntel" familyid="6" modelid="79">
    <pci busid="0000:03:00.0" class="0x060400" link_speed="8 GT/s" link_width="16">
      <pci busid="0000:06:00.0" class="0x030200" link_speed="8 GT/s" link_width="16">
        <gpu dev="0" sm="70" rank="0" gdr="1">
          <nvlink target="0000:07:00.0" count="1" tclass="0x030200"/>
          <nvlink target="0000:0A:00.0" count="1" tclass="0x030200"/>
          <nvlink target="0000:0b:00.0" count="2" tclass="0x030200"/>
          <nvlink target="0000:85:00.0" count="2" tclass="0x030200"/>
        </gpu>
      </pci>
      <pci busid="0000:07:00.0" class="0x030200" link_speed="8 GT/s" link_width="16">
        <gpu dev="1" sm="70" rank="1" gdr="1">
          <nvlink target="0000:06:00.0" count="1" tclass="0x030200"/>
          <nvlink target="0000:0a:00.0" count="2" tclass="0x030200"/>
          <nvlink target="0000:0b:00.0" count="1" tclass="0x030200"/>
        </gpu>
      </pci>
    </pci>
    <pci busid="0000:08:00.0" class="0x060400" link_speed="8 GT/s" link_width="16">
      <pci busid="0000:0a:00.0" class="0x030200" link_speed="8 GT/s" link_width="16">
        <gpu dev="2" sm="70" rank="2" gdr="1">
          <nvlink target="0000:06:00.0" count="1" tclass="0x030200"/>
          <nvlink target="0000:07:00.0" count="2" tclass="0x030200"/>
          <nvlink target="0000:0b:00.0" count="2" tclass="0x030200"/>
        </gpu>
      </pci>
      <pci busid="0000:0b:00.0" class="0x030200" link_speed="8 GT/s" link_width="16">
        <gpu dev="3" sm="70" rank="3" gdr="1">
          <nvlink target="0000:06:00.0" count="2" tclass="0x030200"/>
          <nvlink target="0000:07:00.0" count="1" tclass="0x030200"/>
          <nvlink target="0000:0a:00.0" count="2" tclass="0x030200"/>
        </gpu>
      </pci>
      <pci busid="0000:0c:00.0" class="0x020700" link_speed="8 GT/s" link_width="16">
        <nic><net name="mlx5_0" dev="0" speed="100000" port="1" guid="0x1" maxconn="131072" gdr="1"/></nic>
      </pci>
    </pci>
  </cpu>
</system>)";

constexpr const char* kSmi =
    "\t\x1b[4mGPU0\tGPU1\tGPU2\tGPU3\tmlx5_0\tCPU Affinity\x1b[0m\n"
    "GPU0\t X \tNV1\tNV1\tNV2\tPIX\t0-19\n"
    "GPU1\tNV1\t X \tNV2\tNV1\tPIX\t0-19\n"
    "GPU2\tNV1\tNV2\t X \tNV2\tPXB\t0-19\n"
    "GPU3\tNV2\tNV1\tNV2\t X \tPXB\t0-19\n"
    "mlx5_0\tPIX\tPIX\tPXB\tPXB\t X\n\nLegend:\n\n  X    = Self\n";

Rational allreduce(const Topology& topology) {
  PlanRequest request;
  request.operation = Operation::allreduce;
  const auto plan = make_plan(topology, request);
  EXPECT_TRUE(plan) << plan.error().what;
  EXPECT_TRUE(verify(*plan, topology));
  return plan->rate;
}

TEST(NcclXml, GivesTheMachine) {
  const Topology topology = read_nccl_xml(kNccl, "half").value();
  EXPECT_EQ(hosts(topology).size(), 4U);
  EXPECT_EQ(topology.unit, "GB/s");
  // Over NVLinks alone: those of GPUs 0 to 3 of the built-in machine, 20 GB/s each.
  const Rational links = allreduce(without_others(dgx_1v(), {0, 1, 2, 3}));
  EXPECT_EQ(allreduce(of_kind(topology, "nvlink")), links * 20);
  EXPECT_GT(allreduce(topology), links * 20);  // PCIe adds to it, were switching free
  EXPECT_EQ(allreduce(of_kind(topology, "pcie")), 8);
}

TEST(NcclXml, KnowsNvswitchesAndXgmi) {
  std::string text = "<system version=\"1\"><cpu numaid=\"0\">";
  for (int gpu = 0; gpu < 3; ++gpu) {
    text += "<pci busid=\"" + std::to_string(gpu) + "\" link_speed=\"16.0 GT/s PCIe\" link_width=\"16\"><gpu dev=\"" +
            std::to_string(gpu) + "\" sm=\"80\"><nvlink target=\"c1\" count=\"6\" tclass=\"0x068000\"/>" +
            "<nvlink target=\"c2\" count=\"6\" tclass=\"0x068000\"/></gpu></pci>";
  }
  text += "</cpu></system>";
  const Topology nvidia = read_nccl_xml(text, "a100").value();
  EXPECT_EQ(allreduce(of_kind(nvidia, "nvlink")), 180);  // 240 each: 240 × 3 / (2 × 2)
  const Topology amd = read_nccl_xml(R"(<system version="2"><cpu numaid="0">
    <pci busid="a"><gpu dev="0" sm="90" gcn="910"><xgmi target="b" count="2" tclass="0x038000"/></gpu></pci>
    <pci busid="b"><gpu dev="1" sm="90" gcn="910"><xgmi target="a" count="2" tclass="0x038000"/></gpu></pci>
    </cpu></system>)",
                                     "mi250")
                           .value();
  EXPECT_EQ(allreduce(of_kind(amd, "xgmi")), 72);
}

TEST(SmiTable, GivesTheMachine) {
  const Topology topology = read_smi_table(kSmi, "half").value();
  EXPECT_EQ(allreduce(topology), allreduce(without_others(dgx_1v(), {0, 1, 2, 3})) * 20);
  const Topology pcie =
      read_smi_table("\tGPU0\tGPU1\tGPU2\nGPU0\tX\tPIX\tSYS\nGPU1\tPIX\tX\tSYS\nGPU2\tSYS\tSYS\tX\n", "pcie").value();
  EXPECT_EQ(allreduce(pcie), Rational(17, 2));  // 12 a GPU, 10 between the sockets
  EXPECT_EQ(hosts(pcie).size(), 3U);
  std::string dgx_2 = "\t";
  for (int gpu = 0; gpu < 16; ++gpu) dgx_2 += testing::numbered("GPU", gpu) + "\t";
  for (int row = 0; row < 16; ++row) {
    dgx_2 += "\n" + testing::numbered("GPU", row);
    for (int column = 0; column < 16; ++column) dgx_2 += row == column ? "\t X " : "\tNV6";
  }
  EXPECT_EQ(allreduce(read_smi_table(dgx_2, "dgx-2").value()), 64);  // 6 × 20 × 16 / (2 × 15)
}

TEST(MachineFiles, AreToldApart) {
  EXPECT_EQ(machine_file_reader(kNccl), &read_nccl_xml);
  EXPECT_EQ(machine_file_reader(kSmi), &read_smi_table);
  EXPECT_EQ(machine_file_reader("{}"), nullptr);
  EXPECT_EQ(machine_file_reader(""), nullptr);
  const std::string path = ::testing::TempDir() + "/machine.xml";
  std::ofstream(path) << kNccl;
  EXPECT_EQ(hosts(load_topology(path).value()).size(), 4U);
}

TEST(MachineFiles, NameWhatIsWrong) {
  for (const char* text : {"<system", "<graph/>", "<system/>", "<system><cpu><gpu sm=\"70\"/></cpu></system>",
                           "<system><cpu><pci><gpu dev=\"0\"><nvlink count=\"x\"/></gpu></pci></cpu></system>",
                           "<system><cpu><gpu dev=\"1\"/><gpu dev=\"1\"/></cpu></system>"}) {
    const auto topology = read_nccl_xml(text, "x");
    EXPECT_FALSE(topology) << text;
  }
  for (const char* text : {"GPU0", "\tGPU0\tGPU1\nGPU0\tX\tNV1\n", "\tGPU0\tGPU1\nGPU0\tX\tNV1\nGPU1\tNV2\tX\n",
                           "\tGPU0\tGPU1\nGPU0\tX\tfast\nGPU1\tfast\tX\n", "\tGPU0\tGPU1\nGPU1\tNV1\tX\nGPU0\tX\tNV1\n",
                           "\tGPU0\tGPU1\nGPU0\tX\nGPU1\tNV1\tX\n"}) {
    const auto topology = read_smi_table(text, "x");
    EXPECT_FALSE(topology) << text;
    EXPECT_EQ(topology.error().what.find('\n'), std::string::npos);
  }
}

TEST(MachineFiles, SurviveMutations) {
  for (std::uint32_t seed = 1; seed <= 3000; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 rng(seed);
    std::string text = seed % 2 == 0 ? kNccl : kSmi;
    for (std::uint32_t times = 1 + rng() % 4; times > 0; --times) {
      const std::size_t at = rng() % text.size();
      if (rng() % 2 == 0) {
        text[at] = static_cast<char>(rng() % 256);
      } else {
        text.erase(at, 1 + rng() % 20);
      }
    }
    const auto topology = seed % 2 == 0 ? read_nccl_xml(text, "x") : read_smi_table(text, "x");
    EXPECT_TRUE(!topology || validate(*topology));
  }
}

}  // namespace
}  // namespace coppice::collectives
