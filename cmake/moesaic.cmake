# The house's own CMake vocabulary: one function per kind of target, so that the root file reads as a list.

function(moesaic_flags target)
  target_compile_options(${target} PRIVATE
    -Wall -Wextra -Wshadow -Wconversion -Werror -ffp-contract=off -fno-math-errno
    -fstack-protector-strong -fstack-clash-protection)
  target_compile_definitions(${target} PRIVATE $<$<CONFIG:Release>:_FORTIFY_SOURCE=2>)
  target_link_options(${target} PRIVATE -Wl,-z,relro,-z,now,-z,noexecstack)
  if(MOESAIC_SANITIZE)
    target_compile_options(${target} PRIVATE
      -fsanitize=${MOESAIC_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer)
    target_link_options(${target} PUBLIC -fsanitize=${MOESAIC_SANITIZE})
  endif()
endfunction()

# Headers of the standard library and of tools, read once for a target. GCC 12 then no longer knows that they are system
# headers, and warns of inlined strings that depend on the length of a path: those warnings are no errors here.
function(moesaic_precompile target)
  target_precompile_headers(${target} PRIVATE ${ARGN})
  target_compile_options(${target} PRIVATE -Wno-array-bounds -Wno-stringop-overflow -Wno-stringop-overread
    -Wno-restrict -Wno-maybe-uninitialized)
endfunction()

# moesaic_module(name DEPENDS targets...): cpp/<name>/*.cpp as the static library moesaic_<name>.
# Sources in a subfolder named like an ISA come in through moesaic_isa, with flags of their own.
function(moesaic_module name)
  cmake_parse_arguments(arg "" "" "DEPENDS" ${ARGN})
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/cpp/${name}/*.cpp)
  list(FILTER sources EXCLUDE REGEX "/kernels/(avx[^/]*|missing)/")
  if(NOT sources)
    add_library(moesaic_${name} INTERFACE)
    target_link_libraries(moesaic_${name} INTERFACE ${arg_DEPENDS})
    target_include_directories(moesaic_${name} INTERFACE ${PROJECT_SOURCE_DIR}/cpp)
    return()
  endif()
  moesaic_library(moesaic_${name} SOURCES ${sources} DEPENDS ${arg_DEPENDS})
endfunction()

# moesaic_library(target SOURCES files... DEPENDS targets...): a static library of these files of the house.
function(moesaic_library target)
  cmake_parse_arguments(arg "" "" "SOURCES;DEPENDS" ${ARGN})
  add_library(${target} STATIC ${arg_SOURCES})
  target_include_directories(${target} PUBLIC ${PROJECT_SOURCE_DIR}/cpp)
  target_link_libraries(${target} PUBLIC ${arg_DEPENDS})
  moesaic_flags(${target})
endfunction()

# moesaic_isa(module isa flags): cpp/<module>/<isa>/*.cpp compiled with the flags of that ISA, linked into the module; or,
# when MOESAIC_ISAS leaves the ISA out, cpp/<module>/missing/<isa>.cpp, whose table is null.
# An object library of its own, so that no inline function compiled for a newer ISA is shared with older code by the
# linker: these files keep everything in anonymous namespaces and export one table.
function(moesaic_isa module isa flags)
  if(NOT isa IN_LIST MOESAIC_ISAS)
    target_sources(moesaic_${module} PRIVATE
      ${PROJECT_SOURCE_DIR}/cpp/${module}/missing/${isa}.cpp)
    return()
  endif()
  file(GLOB sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/cpp/${module}/${isa}/*.cpp)
  if(NOT sources)
    return()
  endif()
  separate_arguments(flag_list UNIX_COMMAND "${flags}")
  add_library(moesaic_${module}_${isa} OBJECT ${sources})
  target_include_directories(moesaic_${module}_${isa} PRIVATE ${PROJECT_SOURCE_DIR}/cpp)
  moesaic_flags(moesaic_${module}_${isa})
  target_compile_options(moesaic_${module}_${isa} PRIVATE ${flag_list})
  target_sources(moesaic_${module} PRIVATE $<TARGET_OBJECTS:moesaic_${module}_${isa}>)
endfunction()

# moesaic_test(module [SLOW_UNOPTIMISED]): tests/cpp/<module>/*.cpp as one GoogleTest program, run from the root folder; its
# data folder is passed by definition, relative, so that checkouts share what a compiler cache holds. Under sanitizers the tests themselves are not optimised (half the time to build), but for those that compute
# much by scalar code of their own.
function(moesaic_test module)
  cmake_parse_arguments(arg "SLOW_UNOPTIMISED" "" "" ${ARGN})
  file(GLOB sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/tests/cpp/${module}/*.cpp)
  if(NOT sources)
    return()
  endif()
  add_executable(test_${module} ${sources})
  target_include_directories(test_${module} PRIVATE ${PROJECT_SOURCE_DIR}/tests/cpp)
  target_link_libraries(test_${module} PRIVATE moesaic_${module} GTest::gtest_main Eigen3::Eigen)
  target_compile_definitions(test_${module} PRIVATE
    MOESAIC_TEST_DATA="tests/data")
  moesaic_flags(test_${module})
  target_compile_options(test_${module} PRIVATE -Wno-conversion -Wno-shadow)
  if(MOESAIC_SANITIZE AND NOT arg_SLOW_UNOPTIMISED)
    target_compile_options(test_${module} PRIVATE -O0)
  endif()
  moesaic_precompile(test_${module}
    <gtest/gtest.h> <algorithm> <chrono> <fstream> <functional> <map> <memory> <random> <thread>)
  add_test(NAME ${module} COMMAND test_${module} WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
  set_tests_properties(${module} PROPERTIES TIMEOUT 600)
endfunction()

function(moesaic_bench module)
  file(GLOB sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/bench/cpp/${module}*.cpp)
  if(NOT sources)
    return()
  endif()
  add_executable(bench_${module} ${sources})
  target_link_libraries(bench_${module} PRIVATE moesaic_${module} benchmark::benchmark)
  moesaic_flags(bench_${module})
endfunction()

# moesaic_fuzz(module [SOURCES files...] [DEPENDS targets...]): every tests/fuzz/<module>_*.cpp is a libFuzzer target; the
# libraries must be built with MOESAIC_SANITIZE=address,undefined,fuzzer-no-link. It links the module; or, where that stands
# on half the house, only the files of it that are named, with what those need.
function(moesaic_fuzz module)
  cmake_parse_arguments(arg "" "" "SOURCES;DEPENDS" ${ARGN})
  if(NOT arg_DEPENDS)
    set(arg_DEPENDS moesaic_${module})
  endif()
  file(GLOB sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/tests/fuzz/${module}_*.cpp)
  if(NOT TARGET fuzz_targets)
    add_custom_target(fuzz_targets)
  endif()
  foreach(source ${sources})
    get_filename_component(stem ${source} NAME_WE)
    add_executable(fuzz_${stem} ${source} ${arg_SOURCES})
    target_link_libraries(fuzz_${stem} PRIVATE ${arg_DEPENDS})
    moesaic_flags(fuzz_${stem})
    target_compile_options(fuzz_${stem} PRIVATE -fsanitize=fuzzer)
    target_link_options(fuzz_${stem} PRIVATE -fsanitize=fuzzer)
    add_dependencies(fuzz_targets fuzz_${stem})
  endforeach()
endfunction()
