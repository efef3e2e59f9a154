#include "gpu/device.hpp"

#include <gtest/gtest.h>

using namespace coppice::gpu;

namespace {

TEST(Device, RefusesWhatIsNoDevice) {
  for (const auto* spec : {"", "gpu", "cuda", "cuda:", "cuda:x", "cuda:-1", "cuda:1x", "cuda:99999999999"}) {
    const auto device = make_device(spec, {1});
    ASSERT_FALSE(device) << spec;
    EXPECT_EQ(device.error().code, ErrorCode::device_unavailable);
    EXPECT_NE(device.error().what.find("expected cpu, cuda:N"), std::string::npos);
  }
}

TEST(Device, SaysWhatIsMissingForCuda) {
  const auto device = make_device("cuda:97", {1});  // no machine has so many
  ASSERT_FALSE(device);
  EXPECT_EQ(device.error().code, ErrorCode::device_unavailable);
  EXPECT_EQ(device.error().what.find("device cuda"), 0U);
  EXPECT_GT(device.error().what.size(), 20U);
}

}  // namespace
