// One parallel_for, injected by the host program: torch's own, so that the kernels share its pool
// and its thread count. Without one, a small pool of std::thread serves.
#pragma once

#include <cstdint>
#include <functional>

namespace sede {

// The C function torch_parallel_for of torch >= 2.10.
using ParallelBody = void (*)(std::int64_t begin, std::int64_t end, void* context);
using ParallelFor = std::int32_t (*)(std::int64_t begin, std::int64_t end, std::int64_t grain,
                                     ParallelBody body, void* context);

// Null restores the pool. After a fork the child uses a pool of its own: the host's does not
// survive one.
void set_parallel_for(ParallelFor function);

// The C function torch_get_num_threads of torch >= 2.10: 0 for success.
using ThreadCount = std::int32_t (*)(std::uint32_t* threads);

// How many threads the host wants the pool to use. Null: one a processor.
void set_thread_count(ThreadCount function);

// Threads of the pool; 0: as many as the host wants.
void set_pool_threads(int threads);

// Run worker() on every thread of the pool, this one included, and wait. Each worker is expected to
// take its share from a TaskCounter, so any number of calls, even one, does all the work. The first
// exception is thrown again here.
void run_workers(std::int64_t tasks, const std::function<void()>& worker);

}  // namespace sede
