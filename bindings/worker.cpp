// A cluster's key and a worker as Python sees them; cli/worker.py runs the one and cli/keygen.py
// makes the other. Log events wait in a queue until a thread of Python's takes them, so that no
// thread of the worker ever waits for the GIL or for who reads the log.
#include "cluster/worker/worker.h"

#include <pybind11/stl.h>

#include <condition_variable>
#include <deque>
#include <mutex>
#include <optional>
#include <utility>

#include "base/errors.h"
#include "base/process.h"
#include "bindings/interruptible.h"
#include "bindings/register.h"
#include "bindings/text.h"

namespace py = pybind11;

namespace moesaic::bindings {
namespace {

using cluster::LogEvent;
using net::ClusterKey;

// Bounded: a log that nobody reads must not fill the memory. What did not fit is counted.
class EventQueue {
 public:
  void push(const LogEvent& event) {
    {
      const std::scoped_lock lock(mutex_);
      if (events_.size() >= kMostEvents) {
        ++n_dropped_;
        return;
      }
      if (n_dropped_ > 0) {
        events_.push_back({"dropped",
                           strcat(n_dropped_, " lines were dropped: nobody read the log"),
                           {{"lines", static_cast<std::int64_t>(n_dropped_)}}});
        n_dropped_ = 0;
      }
      events_.push_back(event);
    }
    news_.notify_one();
  }
  // Those who wait get what is left, then nothing.
  void close() {
    {
      const std::scoped_lock lock(mutex_);
      closed_ = true;
    }
    news_.notify_all();
  }
  std::optional<LogEvent> pop(std::chrono::duration<double> timeout) {
    std::unique_lock lock(mutex_);
    news_.wait_for(lock, timeout, [&] { return closed_ || !events_.empty(); });
    if (events_.empty()) return std::nullopt;
    LogEvent event = std::move(events_.front());
    events_.pop_front();
    return event;
  }

 private:
  static constexpr std::size_t kMostEvents = 4096;
  std::mutex mutex_;
  std::condition_variable news_;
  std::deque<LogEvent> events_;
  std::uint64_t n_dropped_ = 0;
  bool closed_ = false;
};

class WorkerHandle {
 public:
  explicit WorkerHandle(cluster::WorkerOptions options) : queue_(std::make_shared<EventQueue>()) {
    options.log = [queue = queue_](const LogEvent& event) { queue->push(event); };
    worker_ = cluster::Worker::start(std::move(options));
    address_ = worker_->address();
  }
  ~WorkerHandle() {
    if (!process_.is_current()) {  // a forked child: the worker and its threads are the parent's
      (void)worker_.release();
      new std::shared_ptr<EventQueue>(std::move(queue_));
      return;
    }
    // As a rule close() was called; at the interpreter's end this may wait.
    worker_.reset();
    queue_->close();
  }
  WorkerHandle(const WorkerHandle&) = delete;
  WorkerHandle& operator=(const WorkerHandle&) = delete;

  const std::string& address() const { return address_; }
  bool stopped() const { return worker_ == nullptr || worker_->stopped(); }
  // Ends all work and waits for the threads.
  void close() {
    if (!process_.is_current()) return;
    const GilRelease free_gil;
    if (worker_) worker_->stop();
    worker_.reset();
    queue_->close();
  }
  // Held by the caller, who may wait while another thread closes the worker.
  std::shared_ptr<EventQueue> queue() const { return queue_; }

 private:
  std::shared_ptr<EventQueue> queue_;
  const OwningProcess process_;
  std::unique_ptr<cluster::Worker> worker_;
  std::string address_;
};

using Fields = std::vector<std::pair<std::string, cluster::LogValue>>;
using Event = std::tuple<std::string, std::string, Fields>;

std::optional<Event> next_event(const WorkerHandle& self, double timeout_s) {
  const std::shared_ptr<EventQueue> queue = self.queue();
  std::optional<LogEvent> event;
  {
    const GilRelease free_gil;
    event = queue->pop(std::chrono::duration<double>(timeout_s));
  }
  if (!event) return std::nullopt;
  Fields fields;
  for (const auto& [name, value] : event->fields) {
    const auto* text = std::get_if<std::string>(&value);
    fields.emplace_back(name, text == nullptr ? value : readable(*text));
  }
  return Event{event->event, readable(event->text), std::move(fields)};
}

std::unique_ptr<WorkerHandle> start_worker(const std::string& listen, const std::string& advertise,
                                           const std::optional<ClusterKey>& key,
                                           bool plain_beyond_loopback, const py::bytes& models,
                                           const py::bytes& cache, std::uint64_t cache_bytes,
                                           std::uint64_t memory_bytes, double read_bytes_per_s,
                                           double matmul_ops_per_s, int threads,
                                           const std::string& backend, const std::string& release,
                                           const std::string& ready_text, Fields ready_fields) {
  cluster::WorkerOptions options;
  options.listen = listen;
  options.advertise = advertise;
  options.key = key;
  options.plain_beyond_loopback = plain_beyond_loopback;
  options.models_dir = std::string(models);
  options.cache_dir = std::string(cache);
  options.cache_bytes = cache_bytes;
  options.memory_bytes = memory_bytes;
  options.read_bytes_per_s = read_bytes_per_s;
  options.matmul_ops_per_s = matmul_ops_per_s;
  options.threads = threads;
  options.backend = backend;
  options.release = release;
  options.ready_text = ready_text;
  options.ready_fields = std::move(ready_fields);
  const GilRelease free_gil;
  return std::make_unique<WorkerHandle>(std::move(options));
}

}  // namespace

void register_worker(py::module_& m) {
  py::class_<ClusterKey>(m, "ClusterKey", "Who has it is a member of the cluster (private).")
      .def_static(
          "parse", [](const py::bytes& text) { return ClusterKey::parse(std::string(text)); },
          py::arg("text"), "Of the text of a key file: 64 hexadecimal digits, or two such lines.")
      .def_static(
          "read", [](const py::bytes& path) { return ClusterKey::read(std::string(path)); },
          py::arg("path"), "Of a file of mode 0600, by its encoded path.")
      .def_static(
          "generate", [](const py::bytes& path) { ClusterKey::generate(std::string(path)); },
          py::arg("path"), "Write a new key to a new file, mode 0600.")
      .def_static("random", &ClusterKey::random)
      .def(
          "name", [](const ClusterKey& self) { return self.key_id(0); },
          "Of the key in use, for logs: tells nothing about it.")
      .def("text", [](const ClusterKey& self) { return py::bytes(self.text()); })
      .def("__repr__", [](const ClusterKey&) { return "ClusterKey(...)"; });

  py::class_<WorkerHandle>(m, "Worker", "A running worker (private: the moesaic worker command).")
      .def(py::init(&start_worker), py::kw_only(), py::arg("listen"), py::arg("advertise"),
           py::arg("key"), py::arg("plain_beyond_loopback"), py::arg("models"), py::arg("cache"),
           py::arg("cache_bytes") = 0, py::arg("memory_bytes"), py::arg("read_bytes_per_s"),
           py::arg("matmul_ops_per_s"), py::arg("threads"), py::arg("backend"), py::arg("release"),
           py::arg("ready_text") = "", py::arg("ready_fields") = Fields{},
           "Listens when it returns. Folders are encoded paths, empty for none.")
      .def_property_readonly("address", &WorkerHandle::address)
      .def_property_readonly("stopped", &WorkerHandle::stopped)
      .def("next_event", &next_event, py::arg("timeout_s"),
           "(event, text, fields) of the log; None when the time is over, or after close().")
      .def("close", &WorkerHandle::close, "End all work and wait for it; idempotent.");
}

}  // namespace moesaic::bindings
