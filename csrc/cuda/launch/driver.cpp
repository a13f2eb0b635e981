#include "driver.h"

#include <dlfcn.h>

#include <cstdlib>
#include <map>
#include <mutex>
#include <utility>

#include "images.h"

namespace sede_cuda {
namespace {

// The few names of cuda.h that are needed, as the driver's stable interface has them.
using Result = int;
using Device = int;
using Context = void*;
using Library = void*;
using Kernel = void*;
constexpr Result kSuccess = 0, kNoBinary = 209, kInvalidImage = 200, kInvalidPtx = 218;
constexpr int kMultiprocessors = 16, kMajor = 75, kMinor = 76;
constexpr int kMaxDynamicShared = 8;
// Of a tensor map: two element types, the swizzle of 128 bytes, and what L2 fetches at a time.
constexpr int kMapF16 = 6, kMapBf16 = 9, kSwizzle128 = 3, kFetch256 = 3;
constexpr unsigned kDefaultShared = 48 * 1024;

struct Driver {
  Result (*init)(unsigned);
  Result (*error_string)(Result, const char**);
  Result (*context)(Context*);
  Result (*set_context)(Context);
  Result (*first_device)(Device*, int);
  Result (*retain)(Context*, Device);
  Result (*device_of_context)(Device*);
  Result (*attribute)(int*, int, Device);
  Result (*load)(Library*, const void*, void*, void**, unsigned, void*, void**, unsigned);
  Result (*kernel)(Kernel*, Library, const char*);
  Result (*set_attribute)(int, int, Kernel, Device);
  Result (*launch)(Kernel, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                   Stream, void**, void**);
  Result (*map)(TensorMap*, int, unsigned, void*, const std::uint64_t*, const std::uint64_t*,
                const unsigned*, const unsigned*, int, int, int, int);
  std::string missing;  // why it cannot be used
};

template <class F>
void find(void* handle, Driver& driver, F& function, const char* name) {
  function = reinterpret_cast<F>(dlsym(handle, name));
  if (function == nullptr && driver.missing.empty())
    driver.missing = std::string("the CUDA driver is too old: it has no ") + name +
                     " (12.0 or newer is needed)";
}

Driver opened() {
  Driver driver{};
  const char* named = std::getenv("SEDE_CUDA_DRIVER");
  const std::string path = named != nullptr && *named != 0 ? named : "libcuda.so.1";
  void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_GLOBAL);
  if (handle == nullptr) {
    driver.missing = "there is no CUDA driver (" + path + " does not open)";
    return driver;
  }
  find(handle, driver, driver.init, "cuInit");
  find(handle, driver, driver.error_string, "cuGetErrorString");
  find(handle, driver, driver.context, "cuCtxGetCurrent");
  find(handle, driver, driver.set_context, "cuCtxSetCurrent");
  find(handle, driver, driver.first_device, "cuDeviceGet");
  find(handle, driver, driver.retain, "cuDevicePrimaryCtxRetain");
  find(handle, driver, driver.device_of_context, "cuCtxGetDevice");
  find(handle, driver, driver.attribute, "cuDeviceGetAttribute");
  find(handle, driver, driver.load, "cuLibraryLoadData");
  find(handle, driver, driver.kernel, "cuLibraryGetKernel");
  find(handle, driver, driver.set_attribute, "cuKernelSetAttribute");
  find(handle, driver, driver.launch, "cuLaunchKernel");
  find(handle, driver, driver.map, "cuTensorMapEncodeTiled");
  if (!driver.missing.empty()) return driver;
  if (driver.init(0) != kSuccess) driver.missing = "the CUDA driver finds no device";
  return driver;
}

const Driver& driver() {
  static const Driver found = opened();
  return found;
}

std::string said(Result result) {
  const char* text = nullptr;
  driver().error_string(result, &text);
  return text == nullptr ? "error " + std::to_string(result) : text;
}

void check(Result result, const std::string& what) {
  if (result != kSuccess) throw DriverError(what + ": " + said(result));
}

// A context is current in this thread from here on. One that autograd has started for the first
// GPU has none yet: PyTorch makes one current with the first call of its own, unless the thread is
// for another GPU, where it does so at once.
void need_context() {
  if (!driver().missing.empty()) throw DriverError(driver().missing);
  Context current = nullptr;
  check(driver().context(&current), "the CUDA context could not be read");
  if (current != nullptr) return;
  static const Context first = [] {
    Device device = 0;
    Context found = nullptr;
    check(driver().first_device(&device, 0), "there is no first GPU");
    check(driver().retain(&found, device), "the GPU has no context");
    return found;
  }();
  check(driver().set_context(first), "the CUDA context could not be set");
}

Device device() {
  need_context();
  Device current = 0;
  check(driver().device_of_context(&current), "no CUDA context is current");
  return current;
}

int attribute(Device of, int which) {
  int value = 0;
  check(driver().attribute(&value, which, of), "a device attribute could not be read");
  return value;
}

std::mutex mutex;

Library library(Image image) {
  static Library loaded[int(Image::count)];
  Library& found = loaded[int(image)];
  if (found == nullptr) {
    const Result result = driver().load(&found, image_data(image), nullptr, nullptr, 0, nullptr,
                                        nullptr, 0);
    if (result == kNoBinary || result == kInvalidImage || result == kInvalidPtx) {
      const Device of = device();
      throw DriverError("this build holds no code for compute capability " +
                        std::to_string(attribute(of, kMajor)) + "." +
                        std::to_string(attribute(of, kMinor)) + ": " + said(result));
    }
    check(result, "the kernels could not be loaded");
  }
  return found;
}

// The kernel, allowed as much shared memory as it asks for on this device.
Kernel kernel(Image image, const std::string& name, unsigned shared) {
  const std::lock_guard<std::mutex> lock(mutex);
  static std::map<std::string, Kernel> kernels;
  static std::map<std::pair<Kernel, Device>, unsigned> allowed;
  Kernel& found = kernels[name];
  if (found == nullptr)
    check(driver().kernel(&found, library(image), name.c_str()), "there is no kernel " + name);
  if (shared > kDefaultShared) {
    const Device of = device();
    unsigned& most = allowed[{found, of}];
    if (most < shared) {
      check(driver().set_attribute(kMaxDynamicShared, int(shared), found, of),
            name + " cannot have " + std::to_string(shared) + " bytes of shared memory");
      most = shared;
    }
  }
  return found;
}

}  // namespace

std::string unavailable_reason() {
  if (!driver().missing.empty()) return driver().missing;
  try {
    const std::lock_guard<std::mutex> lock(mutex);
    device();
    library(Image::finish);
  } catch (const DriverError& error) {
    return error.what();
  }
  return "";
}

bool has_code(Image image) { return *static_cast<const char*>(image_data(image)) != 0; }

int multiprocessors() { return attribute(device(), kMultiprocessors); }

int capability() {
  const Device of = device();
  return 10 * attribute(of, kMajor) + attribute(of, kMinor);
}

TensorMap tensor_map(const void* data, bool bf16, index_t columns, index_t rows, index_t stride,
                     unsigned box_columns, unsigned box_rows) {
  const std::uint64_t sizes[] = {std::uint64_t(columns), std::uint64_t(rows)};
  const std::uint64_t bytes[] = {std::uint64_t(stride) * 2};
  const unsigned box[] = {box_columns, box_rows}, steps[] = {1, 1};
  need_context();
  TensorMap map;
  check(driver().map(&map, bf16 ? kMapBf16 : kMapF16, 2, const_cast<void*>(data), sizes, bytes,
                     box, steps, 0, kSwizzle128, kFetch256, 0),
        "a tensor map could not be made");
  return map;
}

void launch(Image image, const std::string& name, Grid grid, unsigned threads, unsigned shared,
            Stream stream, const void* argument) {
  need_context();
  void* arguments[] = {const_cast<void*>(argument)};
  check(driver().launch(kernel(image, name, shared), grid.x, grid.y, grid.z, threads, 1, 1, shared,
                        stream, arguments, nullptr),
        "the launch of " + name + " failed");
}

}  // namespace sede_cuda
