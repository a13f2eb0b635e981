// The functions of one instruction set. To add an op: declare its functions here, name them in
// table.cpp, and put the code in a file of this folder (all *.cpp are compiled for every set).
#pragma once

#include "api.h"
#include "cross_attention_api.h"
#include "cross_attention_pairs_api.h"
#include "info_nce_api.h"
#include "late_interaction_api.h"
#include "ranks_api.h"
#include "score_info_nce_api.h"

namespace sede {

// The core op for one arithmetic: T is the type of the sums.
template <class T>
struct BankOps {
  index_t panel;              // queries are packed in panels of this many
  index_t width;              // lanes of a vector
  index_t group;              // columns of a packed query element (2: a bf16 pair)
  index_t query_bytes;        // bytes of such an element
  index_t few;                // so many queries, or fewer, are taken as rows
  void (*pack)(const Matrix& query, index_t begin, index_t count, void* out);
  index_t (*scratch)(const BankLse& op, index_t queries, const Tiling& tiling);
  void (*slice)(const SliceCall<T>& call);
};

template <class T>
struct HardestOps {
  index_t (*scratch)(const BankLse& op, index_t queries, const Tiling& tiling, index_t capacity);
  void (*slice)(const HardestCall<T>& call);
};

template <class T>
struct BatchOps {
  index_t (*scratch)(const BankLse& op, index_t queries, const Tiling& tiling);
  void (*slice)(const BatchCall<T>& call);
};

struct EnqueueOps {
  index_t (*scratch)(index_t dim);
  Enqueued (*write)(const Enqueue& op, index_t begin, index_t end, char* scratch);
  Enqueued (*write_sets)(const EnqueueSets& op, index_t begin, index_t end, char* scratch);
};

// Tables are constants the compiler can lay out: code that ran at start-up to build one would run
// with this set's instructions on every processor.
struct Kernels {
  const char* name;
  const BankOps<float>* bank_f32;
  const BankOps<double>* bank_f64;
  const BankOps<float>* bank_bf16;  // all null without bf16 multiply-adds
  const HardestOps<float>* hardest_f32;
  const HardestOps<double>* hardest_f64;
  const HardestOps<float>* hardest_bf16;  // as bank_bf16
  const BatchOps<float>* batch_f32;
  const BatchOps<double>* batch_f64;
  const EnqueueOps* enqueue;
  double (*fma_loop)(index_t rounds);
  index_t fma_loop_flops;  // per round
  const EraseOps* erase;
  const CrossOps* cross;
  const CrossAttentionPairsOps* cross_attention_pairs;
  const NearestOps* nearest;
  const InfoNceOps<float>* info_nce_f32;
  const InfoNceOps<double>* info_nce_f64;
  const ScoreOps* score_info_nce;
  const RankOps<float>* ranks_f32;
  const RankOps<double>* ranks_f64;
};

#ifdef SEDE_ISA
namespace SEDE_ISA {
extern const BankOps<float> bank_f32;
extern const BankOps<double> bank_f64;
extern const BankOps<float> bank_bf16;
extern const HardestOps<float> hardest_f32;
extern const HardestOps<double> hardest_f64;
extern const HardestOps<float> hardest_bf16;
extern const BatchOps<float> batch_f32;
extern const BatchOps<double> batch_f64;
extern const EnqueueOps enqueue_ops;
extern const EraseOps erase_ops;
extern const CrossOps cross_attention_ops;
extern const CrossAttentionPairsOps cross_attention_pairs_ops;
extern const NearestOps nearest_ops;
extern const InfoNceOps<float> info_nce_f32;
extern const InfoNceOps<double> info_nce_f64;
extern const ScoreOps score_ops;
extern const RankOps<float> ranks_f32;
extern const RankOps<double> ranks_f64;
}  // namespace SEDE_ISA
#endif

}  // namespace sede
