// Driver of late interaction. Every element of a result has one task, which adds in a fixed order.
#include <algorithm>
#include <cmath>
#include <vector>

#include "dispatch.h"
#include "fragments.h"
#include "parallel.h"
#include "plan.h"

namespace sede {
namespace {

constexpr index_t kColumns = 256;       // of a forward task
constexpr index_t kQueryColumns = 16;   // of a backward task
constexpr index_t kAlone = 1 << 18;     // multiply-adds for which no other thread is woken

index_t parts(index_t whole, index_t part) { return (whole + part - 1) / part; }

// `cost`: multiply-adds of all tasks.
template <class F>
void share_out(index_t tasks, double cost, F work) {
  TaskCounter counter(tasks);
  run_workers(cost < double(kAlone) ? 1 : tasks, [&] {
    index_t task;
    while (counter.take(task)) work(task);
  });
}

// The largest, NaN if there is one; count > 0.
float largest(const float* score, index_t count) {
  float most = score[0];
  for (index_t n = 1; n < count; ++n)
    if (score[n] > most || score[n] != score[n]) most = score[n];
  return most;
}

// Scores of a set's valid query fragments as one number; count > 0.
float aggregated(const LateAggregate& how, const float* score, index_t count) {
  double total = 0;
  if (how.aggregate == Aggregate::max) return largest(score, count);
  if (how.aggregate == Aggregate::lse) {
    const float most = how.scale * largest(score, count), from = std::isfinite(most) ? most : 0.0f;
    for (index_t n = 0; n < count; ++n) total += double(std::exp(how.scale * score[n] - from));
    return float((std::log(total) + double(from)) / double(how.scale));
  }
  for (index_t n = 0; n < count; ++n) total += double(score[n]);
  return float(how.aggregate == Aggregate::mean ? total / double(count) : total);
}

// Gradients of those scores from that of the number.
void shares(const LateAggregate& how, const float* score, index_t count, float grad, float* out) {
  const float most = count > 0 ? largest(score, count) : 0.0f;
  double total = 0;
  for (index_t n = 0; n < count; ++n) {
    switch (how.aggregate) {
      case Aggregate::lse: out[n] = std::exp(how.scale * score[n] - how.scale * most); break;
      case Aggregate::max: out[n] = score[n] == most ? 1.0f : 0.0f; break;
      default: out[n] = 1.0f; break;
    }
    total += double(out[n]);
  }
  if (how.aggregate == Aggregate::sum || total == 0) total = 1;
  for (index_t n = 0; n < count; ++n) out[n] = float(double(out[n]) / total) * grad;
}

index_t length_of(const index_t* lengths, index_t set, index_t whole) {
  return lengths ? lengths[set] : whole;
}

}  // namespace

void nearest(const Nearest& op) {
  const NearestOps& ops = *kernels().nearest;
  const index_t blocks = parts(op.columns, kColumns);
  const double cost = 64.0 * double(op.sets) * double(op.columns);  // a guess: the fragments of a set
  share_out(op.sets * blocks, cost, [&](index_t task) {
    const index_t begin = task % blocks * kColumns;
    ops.forward(op, task / blocks, begin, std::min(begin + kColumns, op.columns));
  });
}

void nearest_backward(const NearestBackward& op) {
  const NearestOps& ops = *kernels().nearest;
  const index_t chunks = parts(op.dim, ops.chunk), blocks = parts(op.columns, kQueryColumns);
  const double cost = double(op.groups * op.sets) * double(op.columns) * double(op.dim);
  // The elements outermost, so that those of all fragments that are in use lie in a cache.
  if (op.d_queries) {
    const index_t each = op.groups * blocks;
    share_out(chunks * each, cost, [&](index_t task) {
      const index_t begin = task % blocks * kQueryColumns;
      ops.queries(op, task % each / blocks, begin, std::min(begin + kQueryColumns, op.columns),
                  task / each * ops.chunk);
    });
  }
  if (op.d_rows) {
    const index_t each = op.groups * op.sets;
    share_out(chunks * each, cost,
              [&](index_t task) { ops.rows(op, task % each, task / each * ops.chunk); });
  }
}

void late_interaction(const LateSets& op, const LateAggregate& how, float* out, float* score,
                      std::int32_t* source) {
  const NearestOps& ops = *kernels().nearest;
  // Blocks of whole query sets, whose panels stay in a cache for all source sets.
  const index_t together = std::max<index_t>(kColumns / std::max<index_t>(op.queries, 1), 1);
  const index_t sets = std::min(together, op.query_sets), blocks = parts(op.query_sets, sets);
  const index_t columns = round_up(sets * op.queries, ops.panel), packed_block = columns * op.dim;
  const index_t tasks = op.groups * blocks;
  const double cost = double(op.groups * op.source_sets) * double(op.query_sets) *
                      double(op.sources * op.queries) * double(op.dim);
  Buffer packed(tasks * packed_block * index_t(sizeof(float)));
  auto of_block = [&](index_t task) {
    const index_t first = task % blocks * sets;
    return std::make_pair(task / blocks * op.query_sets + first, std::min(sets, op.query_sets - first));
  };
  share_out(tasks, cost, [&](index_t task) {
    const auto [first, count] = of_block(task);
    ops.pack(op.query + first * op.queries * op.dim, count * op.queries, op.dim,
             packed.as<float>() + task * packed_block);
  });
  share_out(tasks * op.source_sets, cost, [&](index_t task) {
    const index_t block = task / op.source_sets, of_group = task % op.source_sets;
    const index_t set = block / blocks * op.source_sets + of_group;
    const auto [first, count] = of_block(block);
    Buffer scratch((op.sources * ops.panel + 2 * columns) * index_t(sizeof(float)));
    float *s = scratch.as<float>(), *best = s + op.sources * ops.panel;
    std::int32_t* where = reinterpret_cast<std::int32_t*>(best + columns);
    ops.panels(op, set, packed.as<float>() + block * packed_block, count * op.queries, s, best, where);
    const bool some = length_of(op.source_lengths, set, op.sources) > 0;
    for (index_t n = 0; n < count; ++n, best += op.queries, where += op.queries) {
      const index_t query = first + n, in_group = query - block / blocks * op.query_sets;
      const index_t valid = length_of(op.query_lengths, query, op.queries);
      const index_t pair = set * op.query_sets + in_group;
      const index_t at = how.by_query ? query * op.source_sets + of_group : pair;
      out[at] = some && valid > 0 ? aggregated(how, best, valid) : 0.0f;
      if (!score) continue;
      for (index_t l = 0; l < op.queries; ++l) {
        score[pair * op.queries + l] = l < valid ? best[l] : 0.0f;
        source[pair * op.queries + l] = l < valid ? where[l] : 0;
      }
    }
  });
}

void late_interaction_backward(const LateSets& op, const LateAggregate& how, const float* grad,
                               const float* score, const std::int32_t* source, float* d_source,
                               float* d_query) {
  const index_t of_sources = op.groups * op.source_sets, pairs = of_sources * op.query_sets;
  const std::size_t all = std::size_t(of_sources);
  std::vector<index_t> begin(all), count(all);
  for (index_t set = 0; set < of_sources; ++set) {
    begin[std::size_t(set)] = set * op.sources;
    count[std::size_t(set)] = length_of(op.source_lengths, set, op.sources);
  }
  Buffer share(pairs * op.queries * index_t(sizeof(float)));
  share_out(of_sources, 64.0 * double(pairs) * double(op.queries), [&](index_t set) {
    const index_t group = set / op.source_sets;
    for (index_t n = 0; n < op.query_sets; ++n) {
      const index_t query = group * op.query_sets + n, pair = set * op.query_sets + n;
      const index_t valid = length_of(op.query_lengths, query, op.queries);
      float* out = share.as<float>() + pair * op.queries;
      const float upstream = grad[how.by_query ? query * op.source_sets + set % op.source_sets : pair];
      if (count[std::size_t(set)] > 0) shares(how, score + pair * op.queries, valid, upstream, out);
      std::fill(count[std::size_t(set)] > 0 ? out + valid : out, out + op.queries, 0.0f);
    }
  });
  const index_t of_queries = op.groups * op.query_sets;
  if (d_source) std::fill(d_source, d_source + of_sources * op.sources * op.dim, 0.0f);
  if (d_query) std::fill(d_query, d_query + of_queries * op.queries * op.dim, 0.0f);
  nearest_backward({op.groups, op.source_sets, op.query_sets * op.queries, op.dim, begin.data(), count.data(),
                    op.source, op.query, share.as<float>(), source, d_source, d_query});
}

}  // namespace sede
