// The C interface: load a program, name the buffers, launch a kernel on several cores.
#include <thread>

#include "decode.h"
#include "global.h"

namespace ptx {
namespace {

struct Module {
  std::unique_ptr<Program> program;
  Regions regions;
  std::vector<Fault> faults;
  u64 executed = 0, lane_executed = 0;
  std::unordered_map<std::string, std::vector<u8>> ran;
  std::map<std::string, u64> histogram;
};

thread_local std::string last_error;

struct Launch {
  Launch(Module& module, const Kernel& kernel, const u32* dims, u8* parameters, const Options& o)
      : module(module), kernel(kernel), dims(dims), parameters(parameters), options(o) {}

  Module& module;
  const Kernel& kernel;
  const u32* dims;  // grid, threads, dynamic shared bytes
  u8* parameters;
  Options options;
  std::atomic<u64> next{0};
  std::mutex mutex;
  std::map<u64, Faults> faults;  // by block, where there are any
  std::map<u64, std::string> errors;
  std::vector<u64> counts;

  u64 blocks() const { return u64(dims[0]) * dims[1] * dims[2]; }

  void prepare(Block& block, u64 linear) const {
    block.kernel = &kernel;
    block.program = module.program.get();
    block.regions = const_cast<Regions*>(&module.regions);
    block.options = options;
    block.parameters = parameters;
    block.linear = u32(linear);
    for (u32 i = 0; i < 3; i++) {
      block.grid[i] = dims[i];
      block.threads[i] = dims[3 + i];
    }
    block.index[0] = u32(linear % dims[0]);
    block.index[1] = u32(linear / dims[0] % dims[1]);
    block.index[2] = u32(linear / dims[0] / dims[1]);
    block.shared.end = u32(round_up(SHARED_BASE + kernel.static_shared, 16)) + dims[6];
  }

  void collect(Block& block, u64 linear) {
    const std::lock_guard<std::mutex> lock(mutex);
    if (!block.faults.all().empty()) faults[linear].merge(block.faults);
    module.executed += block.executed;
    module.lane_executed += block.lane_executed;
    std::vector<u8>& ran = module.ran[kernel.name];
    ran.resize(kernel.code.size());
    for (size_t i = 0; i < ran.size(); i++) ran[i] |= block.ran[i];
    if (!options.histogram) return;
    counts.resize(kernel.code.size());
    for (size_t i = 0; i < counts.size(); i++) counts[i] += block.counts[i];
  }

  void work() {
    SharedMemory shared;  // keeps its memory from block to block
    for (u64 linear; (linear = next++) < blocks();) {
      Block block;
      std::swap(block.shared, shared);
      prepare(block, linear);
      try {
        block.run();
        collect(block, linear);
      } catch (const std::exception& e) {
        const std::lock_guard<std::mutex> lock(mutex);
        errors[linear] = e.what();
        next = blocks();
      }
      std::swap(block.shared, shared);
    }
  }

  void run() {
    u64 workers = options.threads ? options.threads : std::thread::hardware_concurrency();
    workers = std::max<u64>(1, std::min(workers, blocks()));
    std::vector<std::thread> others;
    for (u64 i = 1; i < workers; i++) others.emplace_back([this] { work(); });
    work();
    for (std::thread& t : others) t.join();
    if (!errors.empty()) fail(errors.begin()->second);
    Faults all;
    for (const auto& f : faults) all.merge(f.second);
    module.regions.report_races(all);
    module.faults = all.all();
    for (size_t i = 0; i < counts.size(); i++) {
      const std::string& text = kernel.code[i].text;
      const size_t start = text[0] == '@' ? text.find(' ') + 1 : 0;
      const std::string opcode = text.substr(start, text.find(' ', start) - start);
      if (counts[i]) module.histogram[opcode] += counts[i];
    }
  }
};

Module& module_of(void* handle) { return *static_cast<Module*>(handle); }

int copy_out(const std::string& text, char* out, int size) {
  if (size > 0) snprintf(out, size_t(size), "%s", text.c_str());
  return int(text.size());
}

}  // namespace
}  // namespace ptx

using namespace ptx;

extern "C" {

const char* ptx_error() { return last_error.c_str(); }

void* ptx_load(const char* text) {
  try {
    auto m = std::make_unique<Module>();
    m->program = parse(text);
    return m.release();
  } catch (const std::exception& e) {
    last_error = e.what();
    return nullptr;
  }
}

void ptx_free(void* handle) { delete static_cast<Module*>(handle); }

int ptx_kernels(void* handle, char* out, int size) {
  std::string names;
  for (const auto& k : module_of(handle).program->kernels) names += k.first + "\n";
  return copy_out(names, out, size);
}

// Bytes and offset of every parameter; the number of parameters, or -1.
int ptx_parameters(void* handle, const char* name, u32* out, int most) {
  const auto& kernels = module_of(handle).program->kernels;
  const auto found = kernels.find(name);
  if (found == kernels.end()) return -1;
  int n = 0;
  for (const Parameter& p : found->second->parameters) {
    if (n < most) {
      out[2 * n] = p.bytes;
      out[2 * n + 1] = p.offset;
    }
    n++;
  }
  return n;
}

void ptx_clear(void* handle) {
  Module& m = module_of(handle);
  m.regions.clear();
  m.faults.clear();
  m.executed = m.lane_executed = 0;
  m.histogram.clear();
  for (const auto& g : m.program->globals)
    m.regions.add(g.second.address, g.second.bytes.size() - 256, 0, g.first);
}

void ptx_region(void* handle, u64 base, u64 bytes, u32 flags, const char* name) {
  module_of(handle).regions.add(base, bytes, flags, name);
}

// The number of faults, or -1.
int ptx_launch(void* handle, const char* name, const u32* dims, u8* parameters, u64 bytes,
               const u32* options) {
  Module& m = module_of(handle);
  try {
    const auto found = m.program->kernels.find(name);
    if (found == m.program->kernels.end()) fail("no kernel '" + std::string(name) + "'");
    const Kernel& kernel = *found->second;
    if (bytes < kernel.parameter_bytes) fail("the block of parameters is too small");
    const Options o{options[0], options[1], options[2], options[3],
                    options[4], options[5], options[6], options[7]};
    m.regions.add(reinterpret_cast<u64>(parameters), bytes, Region::READ_ONLY, "parameters");
    Launch launch(m, kernel, dims, parameters, o);
    launch.run();
    return int(m.faults.size());
  } catch (const std::exception& e) {
    last_error = e.what();
    return -1;
  }
}

int ptx_fault(void* handle, int index, char* kind, int kind_size, char* text, int size,
              u64* count) {
  const Fault& f = module_of(handle).faults[size_t(index)];
  copy_out(name_of(f.kind), kind, kind_size);
  *count = f.count;
  return copy_out(f.text, text, size);
}

// Line of every instruction and whether it ran in any launch of the module.
int ptx_coverage(void* handle, const char* name, u32* lines, u8* ran, int most) {
  Module& m = module_of(handle);
  const Kernel& k = *m.program->kernels.at(name);
  std::vector<u8>& hits = m.ran[name];
  hits.resize(k.code.size());
  const int n = int(k.code.size()) - 1;  // the last one ends the kernel and has no line
  for (int i = 0; i < n && i < most; i++) {
    lines[i] = k.code[size_t(i)].line;
    ran[i] = hits[size_t(i)];
  }
  return n;
}

void ptx_statistics(void* handle, u64* out) {
  out[0] = module_of(handle).executed;
  out[1] = module_of(handle).lane_executed;
}

int ptx_histogram(void* handle, char* out, int size) {
  std::string text;
  for (const auto& h : module_of(handle).histogram)
    text += format("%s %llu\n", h.first.c_str(), static_cast<unsigned long long>(h.second));
  return copy_out(text, out, size);
}

// The instruction table: name, source and meaning, separated by tabs.
int ptx_table(char* out, int size) {
  std::string text;
  for (const Row& row : table())
    text += std::string(row.name) + "\t" + row.source + "\t" + row.meaning + "\n";
  return copy_out(text, out, size);
}
}
