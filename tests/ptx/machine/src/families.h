// The decoders that the instruction table names.
#pragma once
#include "decode.h"

namespace ptx {

// integer.cpp
void integer_add(Decode& x, Type t);
void integer_sub(Decode& x, Type t);
void integer_mul(Decode& x, Type t);
void integer_div(Decode& x, Type t);
void integer_min(Decode& x, Type t);
void integer_max(Decode& x, Type t);
void integer_neg(Decode& x, Type t);
void integer_abs(Decode& x, Type t);
void decode_mad(Decode& x);
void decode_rem(Decode& x);
void decode_count_bits(Decode& x);
void decode_brev(Decode& x);
void decode_bfe(Decode& x);
void decode_bfi(Decode& x);
void decode_dp4a(Decode& x);
// floating.cpp
void decode_add(Decode& x);
void decode_sub(Decode& x);
void decode_mul(Decode& x);
void decode_div(Decode& x);
void decode_min(Decode& x);
void decode_max(Decode& x);
void decode_neg(Decode& x);
void decode_abs(Decode& x);
void decode_fma(Decode& x);
void decode_ex2(Decode& x);
void decode_lg2(Decode& x);
void decode_sin(Decode& x);
void decode_cos(Decode& x);
void decode_tanh(Decode& x);
void decode_rcp(Decode& x);
void decode_sqrt(Decode& x);
void decode_rsqrt(Decode& x);
// logic.cpp
void decode_and(Decode& x);
void decode_or(Decode& x);
void decode_xor(Decode& x);
void decode_not(Decode& x);
void decode_shl(Decode& x);
void decode_shr(Decode& x);
void decode_shf(Decode& x);
void decode_lop3(Decode& x);
void decode_prmt(Decode& x);
// compare.cpp
void decode_setp(Decode& x);
void decode_selp(Decode& x);
// convert.cpp
void decode_cvt(Decode& x);
void decode_cvta(Decode& x);
// move.cpp
void decode_mov(Decode& x);
void decode_createpolicy(Decode& x);
// load_store.cpp
void decode_ld(Decode& x);
void decode_st(Decode& x);
void decode_atom(Decode& x);
// warp_exchange.cpp
void decode_shfl(Decode& x);
void decode_redux(Decode& x);
void decode_vote(Decode& x);
void decode_match(Decode& x);
void decode_elect(Decode& x);
void decode_activemask(Decode& x);
// matrix.cpp
void decode_ldmatrix(Decode& x);
void decode_stmatrix(Decode& x);
void decode_mma(Decode& x);
// wgmma.cpp
void decode_wgmma(Decode& x);
// async_copy.cpp, tensor_copy.cpp, tensor_map.cpp, mbarrier.cpp
void decode_cp(Decode& x);
void decode_bulk(Decode& x);
void decode_tensormap(Decode& x);
void decode_mbarrier(Decode& x);
void decode_copies_arrive(Decode& x);
// synchronise.cpp
void decode_bar(Decode& x);
void decode_fence(Decode& x);
void decode_bra(Decode& x);
void decode_exit(Decode& x);
void decode_trap(Decode& x);
void decode_setmaxnreg(Decode& x);
void decode_no_effect(Decode& x);

}  // namespace ptx
