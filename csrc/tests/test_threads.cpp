// The fallback pool: the same bits for any number of threads, several callers at once, use after a
// fork; and the ring write, whose keys are shared out over threads.
#include <sys/wait.h>
#include <unistd.h>

#include <thread>

#include "../parallel.h"
#include "check.h"

using namespace sede_test;

namespace {

constexpr index_t kQueries = 48, kRows = 4000, kDim = 40;

std::vector<float> accumulate() {
  static const auto query = random_matrix<float>(kQueries, kDim, 1);
  static const auto bank = random_matrix<float>(kRows, kDim, 2);
  static const float scale = 7;
  sede::BankLse op{};
  op.query = matrix(query, kQueries, kDim);
  op.bank = matrix(bank, kRows, kDim);
  op.scales = &scale;
  op.exponents = op.accumulators = 1;
  std::vector<float> lse(kQueries), acc(kQueries * kDim);
  std::vector<index_t> count(kQueries);
  sede::bank_lse(op, {lse.data(), nullptr, acc.data(), count.data(), nullptr, nullptr});
  return acc;
}

// Slices raise each other's bounds while they run.
std::vector<index_t> best(index_t k) {
  static const auto query = random_matrix<float>(kQueries, kDim, 1);
  static const auto bank = random_matrix<float>(kRows, kDim, 2);
  sede::BankLse op{};
  op.query = matrix(query, kQueries, kDim);
  op.bank = matrix(bank, kRows, kDim);
  std::vector<float> values(std::size_t(kQueries * k));
  std::vector<index_t> indices(values.size());
  sede::hardest(op, k, values.data(), indices.data());
  return indices;
}

void test_ring() {
  const index_t size = 3000, dim = 65, keys = 2500, first = 1000;
  const auto input = random_matrix<float>(keys, dim, 3);
  std::vector<float> ring(std::size_t(size * dim), 0.0f);
  std::vector<index_t> ids(std::size_t(size), -1);
  sede::enqueue({matrix(ring, size, dim), nullptr, ids.data(), matrix(input, keys, dim), nullptr,
                 first, true});
  for (index_t n = 0; n < keys; n += 7) {
    const index_t slot = (first + n) % size;
    double norm = 0;
    for (index_t d = 0; d < dim; ++d) norm += std::pow(double(input[std::size_t(n * dim + d)]), 2);
    expect(ids[std::size_t(slot)] == -2, "ring id");
    for (index_t d = 0; d < dim; ++d)
      near(double(ring[std::size_t(slot * dim + d)]),
           double(input[std::size_t(n * dim + d)]) / std::sqrt(norm), 1e-6, "ring row");
  }
  expect(ids[std::size_t(first + keys - size)] == -1, "the slot after the last key is untouched");
}

void test_pool() {
  sede::set_pool_threads(1);
  const auto want = accumulate();
  const auto few = best(2), many = best(60);
  for (int threads : {2, 4, 3}) {
    sede::set_pool_threads(threads);
    expect(best(2) == few && best(60) == many, "the best rows do not depend on the threads");
    expect(accumulate() == want, "bits do not depend on the threads");
    std::vector<std::vector<float>> got(4);
    std::vector<std::thread> callers;
    for (auto& result : got) callers.emplace_back([&result] { result = accumulate(); });
    for (auto& caller : callers) caller.join();
    for (const auto& result : got) expect(result == want, "several callers at once");
  }
  sede::set_pool_threads(0);
  static int asked = 0;
  sede::set_thread_count([](std::uint32_t* threads) -> std::int32_t {
    ++asked;
    *threads = 3;
    return 0;
  });
  expect(accumulate() == want && asked > 0, "as many threads as the host wants");
  sede::set_thread_count([](std::uint32_t*) -> std::int32_t { return 1; });
  expect(accumulate() == want, "a host that does not say how many");
  sede::set_thread_count(nullptr);
  sede::set_pool_threads(4);
  test_ring();
}

// A sanitizer for threads cannot follow a child that starts threads of its own.
#if !defined(__SANITIZE_THREAD__)
void test_fork() {
  sede::set_pool_threads(3);
  const auto want = accumulate();
  const pid_t child = fork();
  if (child == 0) {
    alarm(30);
    _exit(accumulate() == want ? 0 : 1);
  }
  int status = -1;
  waitpid(child, &status, 0);
  expect(WIFEXITED(status) && WEXITSTATUS(status) == 0, "use after a fork");
}
#else
void test_fork() {}
#endif

}  // namespace

int main() {
  return on_every_isa([] {
    test_pool();
    test_fork();
  });
}
