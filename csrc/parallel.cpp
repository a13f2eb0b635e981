#include "parallel.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace sede {
namespace {

std::atomic<ParallelFor> injected{nullptr};
std::atomic<ThreadCount> thread_count{nullptr};
std::atomic<bool> forked{false};
std::atomic<int> pool_threads{0};

struct Job {
  const std::function<void()>* worker;
  std::mutex mutex;
  std::exception_ptr error;

  void run() {
    try {
      (*worker)();
    } catch (...) {
      std::lock_guard<std::mutex> lock(mutex);
      if (!error) error = std::current_exception();
    }
  }
};

// Threads that wait for the next job; one job at a time. Where the system gives fewer than wanted,
// those serve.
class Pool {
 public:
  explicit Pool(int wanted) : wanted_(wanted) {
    threads_.reserve(std::size_t(wanted));
    try {
      for (int n = 0; n < wanted; ++n) threads_.emplace_back([this] { serve(); });
    } catch (const std::system_error&) {
    }
  }

  ~Pool() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stop_ = true;
    }
    wake_.notify_all();
    for (auto& thread : threads_) thread.join();
  }

  int wanted() const { return wanted_; }

  void run(Job& job) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      job_ = &job;
      ++round_;
      busy_ = int(threads_.size());
    }
    wake_.notify_all();
    job.run();
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, [this] { return busy_ == 0; });
    job_ = nullptr;
  }

 private:
  void serve() {
    std::uint64_t seen = 0;
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [&] { return stop_ || round_ != seen; });
      if (stop_) return;
      seen = round_;
      Job* job = job_;
      lock.unlock();
      job->run();
      lock.lock();
      if (--busy_ == 0) done_.notify_all();
    }
  }

  const int wanted_;
  std::vector<std::thread> threads_;
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  Job* job_ = nullptr;
  std::uint64_t round_ = 0;
  int busy_ = 0;
  bool stop_ = false;
};

// The pool of this process and the lock that gives it to one caller at a time. Leaked in a forked
// child (its threads do not exist there) and at exit (other threads may still be running).
struct Shared {
  std::atomic_flag taken = ATOMIC_FLAG_INIT;
  Pool* pool = nullptr;
};
Shared* shared = new Shared;

void after_fork_in_child() {
  forked = true;
  shared = new Shared;
}
const int fork_hook = pthread_atfork(nullptr, nullptr, after_fork_in_child);

int wanted_threads() {
  if (pool_threads > 0) return pool_threads;
  const ThreadCount host = thread_count;
  std::uint32_t threads = 0;
  if (host && host(&threads) == 0 && threads > 0) return int(threads);
  return int(std::max(1u, std::thread::hardware_concurrency()));
}

void run_on_pool(Job& job) {
  const int wanted = wanted_threads();
  // Busy with another caller's job, or called from inside one: this thread does it all.
  if (wanted == 1 || shared->taken.test_and_set(std::memory_order_acquire)) return job.run();
  if (shared->pool && shared->pool->wanted() != wanted - 1) {
    delete shared->pool;
    shared->pool = nullptr;
  }
  if (!shared->pool) shared->pool = new Pool(wanted - 1);
  shared->pool->run(job);
  shared->taken.clear(std::memory_order_release);
}

}  // namespace

void set_parallel_for(ParallelFor function) { injected = function; }
void set_thread_count(ThreadCount function) { thread_count = function; }
void set_pool_threads(int threads) { pool_threads = threads; }

void run_workers(std::int64_t tasks, const std::function<void()>& worker) {
  Job job{&worker, {}, nullptr};
  ParallelFor function = injected;
  if (tasks <= 1) {
    job.run();
  } else if (function && !forked) {
    auto body = [](std::int64_t, std::int64_t, void* context) { static_cast<Job*>(context)->run(); };
    if (function(0, tasks, 1, body, &job)) job.run();
  } else {
    run_on_pool(job);
  }
  if (job.error) std::rethrow_exception(job.error);
}

}  // namespace sede
