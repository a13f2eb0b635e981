// Every similarity of two sets of rows, compared with a bar a row: plain structs and the functions of
// one instruction set.
#pragma once

#include "api.h"

namespace sede {

// A slice of the bank and a block of queries. With `scores` they are written there and nothing is
// counted. op has no exponents and no ids.
template <class T>
struct RankCall {
  const BankLse* op;
  const void* packed_query;
  index_t query_begin, queries, bank_begin, bank_end;
  Tiling tiling;
  T* scores;               // [K][B] of the whole call, or null
  const T* query_bar;      // [B] of the whole call
  const T* bank_bar;       // [K] of the whole call
  index_t* query_below;    // [queries] similarities below the query's bar; written
  index_t* bank_below;     // [bank_end - bank_begin] below the row's bar; written
  char* scratch;
};

template <class T>
struct RankOps {
  index_t (*scratch)(const BankLse& op, index_t queries, const Tiling& tiling);
  void (*slice)(const RankCall<T>& call);
};

}  // namespace sede
