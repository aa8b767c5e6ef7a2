// libtorch's streams and events in their form for any device: the same source serves builds without CUDA's headers, and
// what a device cannot do comes back as an error.
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <cstdint>
#include <cstring>
#include <exception>

namespace {

// Returns null, or what went wrong as a string for polo_release.
template <typename Body>
char* guarded(const Body& body) {
  try {
    body();
    return nullptr;
  } catch (const c10::Error& error) {
    return strdup(error.what_without_backtrace());
  } catch (const std::exception& error) {
    return strdup(error.what());
  } catch (...) {
    return strdup("unknown C++ exception");
  }
}

c10::Device cuda(int32_t index) { return {c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(index)}; }
c10::impl::VirtualGuardImpl guard() { return c10::impl::VirtualGuardImpl(c10::DeviceType::CUDA); }
c10::Stream stream(int32_t index, int64_t id) { return c10::Stream(c10::Stream::UNSAFE, cuda(index), id); }

}  // namespace

extern "C" {

// Makes it the device of the calling thread.
char* polo_use_device(int32_t index) {
  return guarded([&] { guard().setDevice(cuda(index)); });
}

// The stream on which the calling thread's operations go.
char* polo_stream_current(int32_t index, int64_t* id) {
  return guarded([&] { *id = guard().getStream(cuda(index)).id(); });
}

// One of libtorch's pool.
char* polo_stream_from_pool(int32_t index, int64_t* id) {
  return guarded([&] { *id = guard().getStreamFromGlobalPool(cuda(index)).id(); });
}

// Makes it the calling thread's, and gives the one that was.
char* polo_stream_exchange(int32_t index, int64_t id, int64_t* previous) {
  return guarded([&] { *previous = guard().exchangeStream(stream(index, id)).id(); });
}

// Returns when all that was put on it is done.
char* polo_stream_finish(int32_t index, int64_t id) {
  return guarded([&] { guard().synchronizeStream(stream(index, id)); });
}

// The cudaStream_t.
char* polo_stream_native_handle(int32_t index, int64_t id, void** handle) {
  return guarded([&] { *handle = stream(index, id).native_handle(); });
}

char* polo_event_new(c10::Event** event) {
  return guarded([&] { *event = new c10::Event(c10::DeviceType::CUDA); });
}

char* polo_event_record(c10::Event* event, int32_t index, int64_t id) {
  return guarded([&] { event->record(stream(index, id)); });
}

// Whatever is put on the stream from now on waits for what was recorded.
char* polo_event_block(const c10::Event* event, int32_t index, int64_t id) {
  return guarded([&] { event->block(stream(index, id)); });
}

char* polo_event_query(const c10::Event* event, bool* is_done) {
  return guarded([&] { *is_done = event->query(); });
}

void polo_event_delete(c10::Event* event) { delete event; }

}  // extern "C"
