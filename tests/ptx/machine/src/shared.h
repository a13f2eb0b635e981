// Shared memory with bounds, alignment, initialisation, race and proxy checks.
#pragma once
#include "state.h"

namespace ptx {

// Every one reports what is wrong and returns false where the access is impossible.
bool shared_read(Warp& w, const Instruction& in, u32 lane, u32 address, u32 bytes, void* value);
bool shared_write(Warp& w, const Instruction& in, u32 lane, u32 address, u32 bytes,
                  const void* value);
// A read of the async proxy (wgmma, bulk store): its end is the caller's matter.
bool shared_begin_read(Warp& w, const Instruction& in, u32 lane, u32 address, u32 bytes);
void shared_end_read(Warp& w, u32 address, u32 bytes);
// A write that lands later; until then the bytes are poison.
enum Flight : u8 { BY_THREADS = 1, BY_ENGINE = 2 };
bool shared_begin_write(Warp& w, const Instruction& in, u32 lane, u32 address, u32 bytes,
                        Flight by);
// Atomic operations and mbarriers: ordered with every access.
u8* shared_atomic(Warp& w, const Instruction& in, u32 lane, u32 address, u32 bytes);
bool is_shared(u64 generic_address);

}  // namespace ptx
