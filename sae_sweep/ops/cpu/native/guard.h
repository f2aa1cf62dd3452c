// Exceptions must not leave a C function or an OpenMP region: either would end the process. Those of a parallel loop
// are kept until it is over, and a function that may throw returns a status, which Python turns into its own exception.
// Functions that allocate nothing cannot throw.
#pragma once

#include <atomic>
#include <cstdio>
#include <exception>
#include <new>
#include <stdexcept>

enum Status : int { kDone = 0, kOutOfMemory = 1, kFailed = 2 };

// What the last exception of this thread said.
inline thread_local char failure_text[200];

template <typename Body>
int status_of(const Body& body) noexcept {
  try {
    body();
    return kDone;
  } catch (const std::bad_alloc&) {
    return kOutOfMemory;
  } catch (const std::length_error&) {  // more elements than any memory holds
    return kOutOfMemory;
  } catch (const std::exception& error) {
    std::snprintf(failure_text, sizeof failure_text, "%s", error.what());
  } catch (...) {
    std::snprintf(failure_text, sizeof failure_text, "unknown exception");
  }
  return kFailed;
}

// Runs the iterations of a parallel loop. After one has thrown, the others do nothing.
class LoopGuard {
 public:
  template <typename Body>
  void run(const Body& body) noexcept {
    if (thrown_.load(std::memory_order_relaxed)) return;
    try {
      body();
    } catch (...) {
      if (!thrown_.exchange(true)) first_ = std::current_exception();
    }
  }
  // After the loop.
  void rethrow() const {
    if (first_) std::rethrow_exception(first_);
  }

 private:
  std::atomic<bool> thrown_{false};
  std::exception_ptr first_;
};
