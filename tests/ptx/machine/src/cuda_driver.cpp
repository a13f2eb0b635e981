// The few entry points of the CUDA driver that csrc/cuda/launch/driver.cpp asks for. Modules are
// PTX texts; a launch runs on the machine, and its faults are the text of the error it returns.
#include <cstring>
#include <map>
#include <set>

#include "decode.h"
#include "global.h"
#include "tensor_map.h"

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

constexpr int kSuccess = 0, kInvalidValue = 1, kInvalidContext = 201, kInvalidPtx = 218,
              kNotFound = 500, kFailed = 719;
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
  u64 executed = 0;
  std::vector<std::string> launched;
  std::map<std::string, void*> stand_ins;  // modules whose kernel of that name runs instead
};

thread_local void* current_context = nullptr;

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

template <class Names>
int written(const Names& names, char* out, int size) {
  std::string lines;
  for (const std::string& name : names) lines += name + "\n";
  if (size > 0) snprintf(out, size_t(size), "%s", lines.c_str());
  return int(lines.size());
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

// Launches of kernel `name` run that of another module from here on; without a module every kernel
// is its own again.
void ptx_cuda_stand_in(const char* name, void* module) {
  if (module == nullptr)
    state().stand_ins.clear();
  else
    state().stand_ins[name] = module;
}

// Launches and warp instructions so far, and the kernels that ran, one a line.
int ptx_cuda_report(u64* numbers, char* out, int size) {
  const std::vector<std::string>& all = state().launched;
  numbers[0] = all.size();
  numbers[1] = state().executed;
  return written(std::set<std::string>(all.begin(), all.end()), out, size);
}

// The kernels of launch `first` and of those after it, one a line.
int ptx_cuda_launched(u64 first, char* out, int size) {
  const std::vector<std::string>& all = state().launched;
  const auto begin = all.begin() + std::ptrdiff_t(std::min<u64>(first, all.size()));
  return written(std::vector<std::string>(begin, all.end()), out, size);
}

int cuInit(unsigned) { return kSuccess; }

int cuGetErrorString(int, const char** text) {
  *text = state().error.c_str();
  return kSuccess;
}

// The one context; a thread has none until it is set there, as with PyTorch's own threads.
int cuCtxGetCurrent(void** context) {
  *context = current_context;
  return kSuccess;
}

int cuCtxSetCurrent(void* context) {
  current_context = context;
  return kSuccess;
}

int cuDeviceGet(int* device, int ordinal) {
  *device = ordinal;
  return ordinal == 0 ? kSuccess : failed(kInvalidValue, "there is one device");
}

int cuDevicePrimaryCtxRetain(void** context, int) {
  *context = &state();
  return kSuccess;
}

int cuCtxGetDevice(int* device) {
  if (current_context == nullptr) return failed(kInvalidContext, "no context is current");
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

// Of 16-bit elements, with what the driver refuses.
int cuTensorMapEncodeTiled(void* map, int type, unsigned rank, void* address, const u64* sizes,
                           const u64* strides, const unsigned* box, const unsigned* steps,
                           int interleave, int swizzle, int fetch, int fill) {
  constexpr int kF16 = 6, kBf16 = 9;
  constexpr u32 kBytes = 2;
  const auto refused = [](const std::string& what) {
    return failed(kInvalidValue, "a tensor map with " + what);
  };
  if (type != kF16 && type != kBf16) return refused("elements that are not 16-bit floats");
  if (rank < 1 || rank > 5) return refused("rank " + std::to_string(rank));
  if (reinterpret_cast<u64>(map) % 64) return refused("memory that is not on 64 bytes");
  if (reinterpret_cast<u64>(address) % 16) return refused("a tensor that is not on 16 bytes");
  if (interleave != 0 || swizzle < 0 || swizzle > 3 || fetch < 0 || fetch > 3 || fill != 0)
    return refused("a layout that is not supported here");
  ptx::RawMap raw{};
  raw.magic = ptx::MAP_MAGIC;
  raw.rank = rank;
  raw.base = reinterpret_cast<u64>(address);
  raw.element = kBytes;
  raw.swizzle = u8(swizzle);
  for (u32 i = 0; i < 5; ++i) {
    raw.size[i] = i < rank ? sizes[i] : 1;
    raw.box[i] = i < rank ? box[i] : 1;
    if (raw.size[i] == 0 || raw.size[i] > u64(1) << 32) return refused("a size out of range");
    if (raw.box[i] == 0 || raw.box[i] > 256) return refused("a box out of range");
    if (i < rank && steps[i] != 1) return refused("steps other than 1");
  }
  if (raw.box[0] * kBytes % 16 || (swizzle && raw.box[0] * kBytes > 16u << swizzle))
    return refused("a row of the box that does not fit its swizzle");
  for (u32 i = 0; i + 1 < rank; ++i) {
    raw.stride[i] = strides[i];
    if (strides[i] % 16 || strides[i] == 0 || strides[i] >= u64(1) << 40)
      return refused("a stride of " + std::to_string(strides[i]) + " bytes");
  }
  std::memcpy(map, &raw, sizeof raw);
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
  if (current_context == nullptr) return failed(kInvalidContext, "no context is current");
  if (s.idle) return kSuccess;
  Kernel kernel = *static_cast<Kernel*>(handle);
  if (const auto other = s.stand_ins.find(kernel.name); other != s.stand_ins.end())
    kernel.module = other->second;
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
  s.launched.push_back(kernel.name);
  u64 numbers[2];
  ptx_statistics(kernel.module, numbers);
  s.executed += numbers[0];
  if (faults < 0) return failed(kFailed, ptx_error());
  return faults == 0 ? kSuccess : failed(kFailed, faults_of(kernel.module, faults));
}
}
