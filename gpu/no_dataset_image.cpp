// In place of dataset_image.cpp where libjpeg or libpng is not there.
#include "gpu/dataset_image.hpp"

namespace coppice::gpu {

Expected<Image> decode_image(std::span<const std::byte>, bool, const std::string& shown) {
  return unexpected(Error{ErrorCode::unreadable, shown + ": this build reads no images: install libjpeg-dev and "
                                                         "libpng-dev (bash apps/deps) and build again"});
}

}  // namespace coppice::gpu
