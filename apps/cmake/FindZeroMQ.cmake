# libzmq; Debian ships only a pkg-config file. Defines ZeroMQ::ZeroMQ, and libzmq under the name that cppzmq asks for.
find_path(ZeroMQ_INCLUDE_DIR zmq.h)
find_library(ZeroMQ_LIBRARY zmq)
if(ZeroMQ_INCLUDE_DIR)
  foreach(part MAJOR MINOR PATCH)
    file(STRINGS "${ZeroMQ_INCLUDE_DIR}/zmq.h" line REGEX "^#define ZMQ_VERSION_${part} [0-9]+")
    string(REGEX MATCH "[0-9]+" ZeroMQ_${part} "${line}")
  endforeach()
  set(ZeroMQ_VERSION "${ZeroMQ_MAJOR}.${ZeroMQ_MINOR}.${ZeroMQ_PATCH}")
endif()
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(ZeroMQ
  REQUIRED_VARS ZeroMQ_LIBRARY ZeroMQ_INCLUDE_DIR VERSION_VAR ZeroMQ_VERSION
  REASON_FAILURE_MESSAGE "install libzmq3-dev (bash apps/deps does)")
if(ZeroMQ_FOUND AND NOT TARGET ZeroMQ::ZeroMQ)
  add_library(ZeroMQ::ZeroMQ UNKNOWN IMPORTED GLOBAL)
  set_target_properties(ZeroMQ::ZeroMQ PROPERTIES
    IMPORTED_LOCATION "${ZeroMQ_LIBRARY}" INTERFACE_INCLUDE_DIRECTORIES "${ZeroMQ_INCLUDE_DIR}")
endif()
