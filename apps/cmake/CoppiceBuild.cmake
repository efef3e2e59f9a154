# What every target of the project is built with. Included by the root and by gpu/ when it is built alone.
include_guard(GLOBAL)

option(COPPICE_TESTS "Build the tests" ON)
option(COPPICE_LEAVES_ONLY "Only coding/, collectives/ and gpu/: what the sanitizers check" OFF)
set(COPPICE_SANITIZE "" CACHE STRING "Sanitizers, as -fsanitize= takes them: address,undefined or thread")

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "" FORCE)
endif()

find_program(COPPICE_CCACHE ccache)
if(COPPICE_CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  set(CMAKE_CXX_COMPILER_LAUNCHER "${COPPICE_CCACHE}")
endif()
find_program(COPPICE_LLD ld.lld)
if(COPPICE_LLD)
  add_link_options(-fuse-ld=lld)
endif()

if(COPPICE_SANITIZE)
  add_compile_options(-fsanitize=${COPPICE_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer -g1)
  add_link_options(-fsanitize=${COPPICE_SANITIZE})
endif()

# The root of the sources is the one include path: #include "coding/decoder.hpp" names its layer.
get_filename_component(COPPICE_ROOT "${CMAKE_CURRENT_LIST_DIR}/../.." ABSOLUTE)

# coppice_library(name sources...): a library of one folder, warnings as errors.
function(coppice_warnings target)
  target_compile_options(${target} PRIVATE
    $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wno-sign-conversion -Werror>)
  # GCC 12 sees overlaps in std::string's own concatenation (GCC bug 105329).
  if(CMAKE_CXX_COMPILER_ID STREQUAL GNU AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
    target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-Wno-restrict>)
  endif()
  # What the sanitizers put in between hides from GCC what is initialised.
  if(COPPICE_SANITIZE AND CMAKE_CXX_COMPILER_ID STREQUAL GNU)
    target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-Wno-maybe-uninitialized>)
  endif()
endfunction()

function(coppice_library name)
  add_library(${name} STATIC ${ARGN})
  target_include_directories(${name} PUBLIC "${COPPICE_ROOT}")
  coppice_warnings(${name})
endfunction()

# coppice_test(name libraries... SOURCES files...): one GoogleTest program, registered with ctest as a whole.
function(coppice_test name)
  cmake_parse_arguments(arg "" "TIMEOUT" "SOURCES;LIBRARIES;LABELS" ${ARGN})
  add_executable(${name} ${arg_SOURCES})
  target_include_directories(${name} PRIVATE "${COPPICE_ROOT}")
  target_link_libraries(${name} PRIVATE ${arg_LIBRARIES} GTest::gtest_main)
  coppice_warnings(${name})
  add_test(NAME ${name} COMMAND ${name})
  if(NOT arg_TIMEOUT)
    set(arg_TIMEOUT 900)  # ends what hangs; slow machines, sanitizers and neighbours are not to be felt
  endif()
  set_tests_properties(${name} PROPERTIES TIMEOUT ${arg_TIMEOUT} LABELS "${arg_LABELS}")
endfunction()
