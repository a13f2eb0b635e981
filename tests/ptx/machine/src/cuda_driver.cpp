// The few entry points of the CUDA driver that csrc/cuda/launch/driver.cpp asks for. Modules are
// PTX texts; a launch runs on the machine, and its faults are the text of the error it returns.
#include <cstring>
#include <set>

#include "decode.h"
#include "global.h"

extern "C" {
const char* ptx_error();
void* ptx_load(const char* text);
int ptx_parameters(void* handle, const char* name, ptx::u32* out, int most);
void ptx_clear(void* handle);
void ptx_region(void* handle, ptx::u64 base, ptx::u64 bytes, ptx::u32 flags, const char* name);
int ptx_launch(void* handle, const char* name, const ptx::u32* dims, ptx::u8* parameters,
               ptx::u64 bytes, const ptx::u32* options);
int ptx_fault(void* handle, int index, char* kind, int kind_size, char* text, int size,
              ptx::u64* count);
void ptx_statistics(void* handle, ptx::u64* out);
}

namespace {

using ptx::u32;
using ptx::u64;
using ptx::u8;

constexpr int kSuccess = 0, kInvalidValue = 1, kInvalidPtx = 218, kNotFound = 500, kFailed = 719;
constexpr int kMultiprocessors = 16, kMajor = 75, kMinor = 76, kMaxDynamicShared = 8;
constexpr u32 kDefaultShared = 48 * 1024;

struct Buffer {
  u64 base, bytes;
  u32 flags;
  std::string name;
};

struct Kernel {
  void* module;
  std::string name;
  u32 shared = kDefaultShared;  // the most that it may ask for
};

struct State {
  int major = 8, minor = 0, multiprocessors = 4;
  u32 most_shared = 166912;
  u32 options[8] = {0, 0, 1, 1, 1, 100000, 0, 0};
  bool idle = false;  // launches do nothing: the host's time is left
  std::vector<Buffer> buffers;
  std::string error = "no error";
  u64 launches = 0, executed = 0;
  std::set<std::string> ran;
};

State& state() {
  static State all;
  return all;
}

int failed(int code, const std::string& text) {
  state().error = text;
  return code;
}

std::string faults_of(void* module, int count) {
  std::string text = std::to_string(count) + " faults";
  for (int i = 0; i < count && i < 12; ++i) {
    char kind[64], line[4096];
    u64 times = 0;
    ptx_fault(module, i, kind, sizeof kind, line, sizeof line, &times);
    text += "\n" + std::string(line) + " x" + std::to_string(times);
  }
  return text;
}

}  // namespace

extern "C" {

// What the device is, how warps run (Options of module.py), and whether launches do nothing.
void ptx_cuda_configure(int major, int minor, int multiprocessors, u32 most_shared,
                        const u32* options, int idle) {
  State& s = state();
  s.major = major;
  s.minor = minor;
  s.multiprocessors = multiprocessors;
  s.most_shared = most_shared;
  std::memcpy(s.options, options, sizeof s.options);
  s.idle = idle != 0;
}

// The buffers that launches from here on may reach.
void ptx_cuda_forget() { state().buffers.clear(); }
void ptx_cuda_buffer(u64 base, u64 bytes, u32 flags, const char* name) {
  state().buffers.push_back({base, bytes, flags, name});
}

// Launches and warp instructions so far, and the kernels that ran, one a line.
int ptx_cuda_report(u64* numbers, char* out, int size) {
  numbers[0] = state().launches;
  numbers[1] = state().executed;
  std::string names;
  for (const std::string& name : state().ran) names += name + "\n";
  if (size > 0) snprintf(out, size_t(size), "%s", names.c_str());
  return int(names.size());
}

int cuInit(unsigned) { return kSuccess; }

int cuGetErrorString(int, const char** text) {
  *text = state().error.c_str();
  return kSuccess;
}

int cuCtxGetDevice(int* device) {
  *device = 0;
  return kSuccess;
}

int cuDeviceGetAttribute(int* value, int attribute, int) {
  if (attribute == kMultiprocessors) *value = state().multiprocessors;
  else if (attribute == kMajor) *value = state().major;
  else if (attribute == kMinor) *value = state().minor;
  else return failed(kInvalidValue, "unknown attribute " + std::to_string(attribute));
  return kSuccess;
}

int cuLibraryLoadData(void** library, const void* code, void*, void*, unsigned, void*, void*,
                      unsigned) {
  *library = ptx_load(static_cast<const char*>(code));
  return *library == nullptr ? failed(kInvalidPtx, ptx_error()) : kSuccess;
}

int cuLibraryGetKernel(void** kernel, void* library, const char* name) {
  if (ptx_parameters(library, name, nullptr, 0) < 0)
    return failed(kNotFound, std::string("no kernel ") + name);
  *kernel = new Kernel{library, name};
  return kSuccess;
}

int cuKernelSetAttribute(int attribute, int value, void* kernel, int) {
  if (attribute != kMaxDynamicShared || value < 0 || u32(value) > state().most_shared)
    return failed(kInvalidValue, "a block cannot have so much shared memory");
  static_cast<Kernel*>(kernel)->shared = u32(value);
  return kSuccess;
}

int cuLaunchKernel(void* handle, unsigned x, unsigned y, unsigned z, unsigned threads_x,
                   unsigned threads_y, unsigned threads_z, unsigned shared, void*,
                   void** arguments, void**) {
  State& s = state();
  if (s.idle) return kSuccess;
  const Kernel& kernel = *static_cast<Kernel*>(handle);
  if (x == 0 || y == 0 || z == 0 || x > 0x7fffffffu || y > 65535 || z > 65535)
    return failed(kInvalidValue, "a grid of " + std::to_string(x) + " x " + std::to_string(y) +
                                     " x " + std::to_string(z) + " blocks");
  if (shared > kernel.shared)
    return failed(kInvalidValue, "more shared memory than the kernel may have");
  u32 layout[64];
  const int count = ptx_parameters(kernel.module, kernel.name.c_str(), layout, 32);
  u64 bytes = 0;
  for (int i = 0; i < count; ++i) bytes = std::max<u64>(bytes, layout[2 * i] + layout[2 * i + 1]);
  alignas(64) static thread_local u8 block[8192];
  if (bytes > sizeof block) return failed(kInvalidValue, "too many bytes of parameters");
  for (int i = 0; i < count; ++i)
    std::memcpy(block + layout[2 * i + 1], arguments[i], layout[2 * i]);
  ptx_clear(kernel.module);
  for (const Buffer& b : s.buffers)
    ptx_region(kernel.module, b.base, b.bytes, b.flags, b.name.c_str());
  const u32 dims[7] = {x, y, z, threads_x, threads_y, threads_z, shared};
  const int faults = ptx_launch(kernel.module, kernel.name.c_str(), dims, block, bytes, s.options);
  s.launches++;
  s.ran.insert(kernel.name);
  u64 numbers[2];
  ptx_statistics(kernel.module, numbers);
  s.executed += numbers[0];
  if (faults < 0) return failed(kFailed, ptx_error());
  return faults == 0 ? kSuccess : failed(kFailed, faults_of(kernel.module, faults));
}
}
