// Compiled into the kernels, it lets their allocations fail on demand, and counts those that are not freed.
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <stdexcept>

namespace {
std::atomic<int64_t> left{-1}, live{0};
std::atomic<bool> other{false};
}  // namespace

extern "C" {
// The next `count` allocations succeed, and no more; negative: all do. `as_other` throws something unforeseen.
void fail_after(int64_t count, bool as_other) {
  left = count;
  other = as_other;
}
int64_t living() { return live; }
}

void* operator new(std::size_t size) {
  int64_t now = left;
  while (now > 0 && !left.compare_exchange_weak(now, now - 1)) {
  }
  if (now == 0 && other) throw std::runtime_error("something else");
  if (now == 0) throw std::bad_alloc();
  live++;
  return std::malloc(size);
}
void operator delete(void* p) noexcept {
  if (p) live--;
  std::free(p);
}
void operator delete(void* p, std::size_t) noexcept { operator delete(p); }
