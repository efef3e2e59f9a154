# oneDNN; Debian's own CMake file asks for OpenCL's headers, which the CPU needs not. Defines oneDNN::oneDNN.
find_path(oneDNN_INCLUDE_DIR dnnl.hpp)
find_library(oneDNN_LIBRARY dnnl)
if(oneDNN_INCLUDE_DIR)
  foreach(part MAJOR MINOR PATCH)
    file(STRINGS "${oneDNN_INCLUDE_DIR}/dnnl_version.h" line REGEX "^#define DNNL_VERSION_${part} [0-9]+")
    string(REGEX MATCH "[0-9]+" oneDNN_${part} "${line}")
  endforeach()
  set(oneDNN_VERSION "${oneDNN_MAJOR}.${oneDNN_MINOR}.${oneDNN_PATCH}")
endif()
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(oneDNN
  REQUIRED_VARS oneDNN_LIBRARY oneDNN_INCLUDE_DIR VERSION_VAR oneDNN_VERSION
  REASON_FAILURE_MESSAGE "install libdnnl-dev (bash apps/deps does)")
if(oneDNN_FOUND AND NOT TARGET oneDNN::oneDNN)
  add_library(oneDNN::oneDNN UNKNOWN IMPORTED GLOBAL)
  set_target_properties(oneDNN::oneDNN PROPERTIES
    IMPORTED_LOCATION "${oneDNN_LIBRARY}" INTERFACE_INCLUDE_DIRECTORIES "${oneDNN_INCLUDE_DIR}")
endif()
