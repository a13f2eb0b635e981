// The fused-multiply-add rate of the machine, as a yardstick for the kernels.
#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "dispatch.h"
#include "drivers.h"

namespace sede {

double fma_peak_gflops(int threads, double ms) {
  using Clock = std::chrono::steady_clock;
  constexpr index_t kRounds = 20000;
  const Kernels& isa = kernels();
  std::atomic<int> waiting{threads};
  std::vector<double> rates(std::size_t(threads), 0.0);
  auto measure = [&](int n) {
    --waiting;
    while (waiting > 0) std::this_thread::yield();
    index_t rounds = 0;
    double elapsed = 0;
    const auto start = Clock::now();
    volatile double sink = 0;
    while (elapsed < ms * 1e-3) {
      sink = sink + isa.fma_loop(kRounds);
      rounds += kRounds;
      elapsed = std::chrono::duration<double>(Clock::now() - start).count();
    }
    rates[std::size_t(n)] = double(rounds * isa.fma_loop_flops) / elapsed * 1e-9;
  };
  std::vector<std::thread> others;
  for (int n = 1; n < threads; ++n) others.emplace_back(measure, n);
  if (threads > 0) measure(0);
  for (auto& thread : others) thread.join();
  double total = 0;
  for (double rate : rates) total += rate;
  return total;
}

}  // namespace sede
