// Every instruction that the machine executes. A name that is not here, and a modifier that its
// decoder does not ask for, is an error when the program is loaded.
#include "families.h"

namespace ptx {

const std::vector<Row>& table() {
  static const std::vector<Row> rows = {
      // name, section of the PTX ISA 9.0, meaning, decoder
      {"add", "9.7.1 Integer, 9.7.3 Floating Point, 9.7.4 Half: add", "d = a + b", decode_add},
      {"sub", "9.7.1, 9.7.3, 9.7.4: sub", "d = a - b", decode_sub},
      {"mul", "9.7.1, 9.7.3, 9.7.4: mul", "d = a b; .lo, .hi or .wide of integers", decode_mul},
      {"mad", "9.7.1: mad", "d = a b + c; .lo or .wide", decode_mad},
      {"fma", "9.7.3, 9.7.4: fma", "d = a b + c, rounded once", decode_fma},
      {"div", "9.7.1, 9.7.3: div", "d = a / b", decode_div},
      {"rem", "9.7.1: rem", "d = a - b (a / b)", decode_rem},
      {"min", "9.7.1, 9.7.3, 9.7.4: min", "the smaller; a number before a NaN but for .NaN",
       decode_min},
      {"max", "9.7.1, 9.7.3, 9.7.4: max", "the larger; a number before a NaN but for .NaN",
       decode_max},
      {"neg", "9.7.1, 9.7.3, 9.7.4: neg", "d = -a", decode_neg},
      {"abs", "9.7.1, 9.7.3, 9.7.4: abs", "d = |a|", decode_abs},
      {"popc", "9.7.1: popc", "number of ones", decode_count_bits},
      {"clz", "9.7.1: clz", "number of leading zeros", decode_count_bits},
      {"brev", "9.7.1: brev", "bits in reverse", decode_brev},
      {"bfe", "9.7.1: bfe", "field of c bits from bit b of a", decode_bfe},
      {"bfi", "9.7.1: bfi", "e bits of a put into b at bit c", decode_bfi},
      {"dp4a", "9.7.1: dp4a", "c plus four products of bytes", decode_dp4a},
      {"ex2", "9.7.3, 9.7.4: ex2", "2 to the a", decode_ex2},
      {"lg2", "9.7.3: lg2", "logarithm to the base 2", decode_lg2},
      {"sin", "9.7.3: sin", "sine", decode_sin},
      {"cos", "9.7.3: cos", "cosine", decode_cos},
      {"tanh", "9.7.3, 9.7.4: tanh", "hyperbolic tangent", decode_tanh},
      {"rcp", "9.7.3: rcp", "1 / a", decode_rcp},
      {"sqrt", "9.7.3: sqrt", "square root", decode_sqrt},
      {"rsqrt", "9.7.3: rsqrt", "1 / square root", decode_rsqrt},
      {"setp", "9.7.6 Comparison, 9.7.7 Half: setp", "p, q = comparison and its opposite",
       decode_setp},
      {"selp", "9.7.6: selp", "a where c holds, else b", decode_selp},
      {"and", "9.7.8 Logic and Shift: and", "bitwise and", decode_and},
      {"or", "9.7.8: or", "bitwise or", decode_or},
      {"xor", "9.7.8: xor", "bitwise exclusive or", decode_xor},
      {"not", "9.7.8: not", "bitwise complement", decode_not},
      {"lop3", "9.7.8: lop3", "any function of three bits, by its table", decode_lop3},
      {"shf", "9.7.8: shf", "shift of b:a", decode_shf},
      {"shl", "9.7.8: shl", "left; all out from the width on", decode_shl},
      {"shr", "9.7.8: shr", "right; signs come in for .s", decode_shr},
      {"prmt", "9.7.9 Data Movement: prmt", "four bytes of b:a", decode_prmt},
      {"mov", "9.7.9: mov", "register, number, symbol; packs and unpacks", decode_mov},
      {"cvt", "9.7.9: cvt", "conversion with rounding, .ftz, .sat", decode_cvt},
      {"cvta", "9.7.9: cvta", "address to and from the generic space", decode_cvta},
      {"ld", "9.7.9: ld, ld.global.nc", "load, up to 32 bytes a lane", decode_ld},
      {"st", "9.7.9: st", "store, up to 32 bytes a lane", decode_st},
      {"shfl", "9.7.9: shfl.sync", "register of another lane", decode_shfl},
      {"cp", "9.7.9.25, 9.7.9.27: cp.async, cp.async.bulk, cp.async.bulk.tensor",
       "copies that land when they are waited for", decode_cp},
      {"tensormap", "9.7.9.28: tensormap.replace; 9.7.13.16: tensormap.cp_fenceproxy",
       "fields of a tensor map; its publication", decode_tensormap},
      {"createpolicy", "9.7.9: createpolicy", "a hint for the cache: 0", decode_createpolicy},
      {"prefetch", "9.7.9: prefetch", "no effect on values", decode_no_effect},
      {"prefetchu", "9.7.9: prefetchu", "no effect on values", decode_no_effect},
      {"bra", "9.7.12 Control Flow: bra", "jump; lanes may part", decode_bra},
      {"ret", "9.7.12: ret", "the lane ends", decode_exit},
      {"exit", "9.7.12: exit", "the lane ends", decode_exit},
      {"bar", "9.7.13 Synchronization: bar, bar.warp.sync", "barrier of a block or a warp",
       decode_bar},
      {"barrier", "9.7.13: barrier", "barrier of a block", decode_bar},
      {"fence", "9.7.13: fence",
       "of the async proxy and of mbarrier.init; others order nothing here", decode_fence},
      {"membar", "9.7.13: membar", "orders nothing here", decode_fence},
      {"atom", "9.7.13: atom", "read, combine, write", decode_atom},
      {"red", "9.7.13: red", "combine, write", decode_atom},
      {"vote", "9.7.13: vote.sync", "predicates of a warp", decode_vote},
      {"match", "9.7.13: match.sync", "lanes with the same value", decode_match},
      {"activemask", "9.7.13: activemask", "lanes that are here", decode_activemask},
      {"redux", "9.7.13: redux.sync", "reduction over a warp", decode_redux},
      {"elect", "9.7.13: elect.sync", "one lane of several", decode_elect},
      {"mbarrier", "9.7.13.15: mbarrier", "init, inval, arrive, expect_tx, try_wait, test_wait",
       decode_mbarrier},
      {"griddepcontrol", "9.7.13: griddepcontrol", "no effect: launches do not overlap",
       decode_no_effect},
      {"ldmatrix", "9.7.14 Warp-Level Matrix: ldmatrix", "8 x 8 matrices to fragments",
       decode_ldmatrix},
      {"stmatrix", "9.7.14: stmatrix", "fragments to 8 x 8 matrices", decode_stmatrix},
      {"mma", "9.7.14: mma", "D = A B + C of a warp, fp32 sums in the order of k", decode_mma},
      {"wgmma", "9.7.15 Asynchronous Warpgroup-Level Matrix: wgmma",
       "mma_async, fence, commit_group, wait_group", decode_wgmma},
      {"nanosleep", "9.7.19 Miscellaneous: nanosleep", "no effect", decode_no_effect},
      {"trap", "9.7.19: trap", "ends the launch with an error", decode_trap},
      {"setmaxnreg", "9.7.19: setmaxnreg", "registers of a warpgroup, from the block's pool",
       decode_setmaxnreg},
  };
  return rows;
}

const Row* find_row(const std::string& name) {
  for (const Row& row : table())
    if (name == row.name) return &row;
  return nullptr;
}

}  // namespace ptx
