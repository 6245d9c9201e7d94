// Requests: what one Python call asks of the engine, and the waiting for it. Waiting frees the GIL
// and looks for signals; the caller cancels what it no longer wants.
#include <pybind11/stl.h>

#include <algorithm>
#include <optional>
#include <string_view>

#include "bindings/engine_types.h"
#include "bindings/interruptible.h"
#include "bindings/numpy.h"

namespace moesaic::bindings {
namespace {

using engine::RequestSpec;
using model::SamplerSpec;

// The requests of one call. What is unfinished when it goes is cancelled.
class Batch {
 public:
  Batch(const EngineHandle& handle, std::vector<RequestSpec> specs)
      : engine_(handle.engine), channel_(std::make_shared<engine::Channel>()) {
    requests_ = engine_->submit(std::move(specs), channel_);
    finished_.assign(requests_.size(), false);
  }
  // Waits for nothing, since the GIL is held: a session's next writer comes after a cancelled one.
  ~Batch() { cancel_all(); }
  Batch(const Batch&) = delete;
  Batch& operator=(const Batch&) = delete;

  std::size_t size() const { return requests_.size(); }

  // Indices with news; waits until there is one, or `seconds` have passed. Signals are looked for
  // before and while waiting.
  std::vector<std::size_t> wait(double seconds) {
    const auto deadline = engine::Clock::now() + std::chrono::duration<double>(seconds);
    while (true) {
      check_signals();
      engine_->check_usable("Model");
      std::vector<std::size_t> ready;
      {
        const GilRelease free_gil;
        ready = channel_->wait_for(kSignalPoll);
      }
      if (!ready.empty() || engine::Clock::now() >= deadline) return ready;
    }
  }

  Dict take(std::size_t i) {
    engine::Update update = at(i).take();
    finished_[i] = update.finished;
    Dict out;
    py::list tokens(update.tokens.size());
    for (std::size_t k = 0; k < update.tokens.size(); ++k) {
      model::Sampled& sampled = update.tokens[k];
      tokens[k] = py::make_tuple(sampled.token, sampled.logprob, std::move(sampled.top_ids),
                                 std::move(sampled.top_logprobs));
    }
    out["tokens"] = std::move(tokens);
    out["row"] = py::none();
    if (update.row) out["row"] = own(std::move(*update.row));
    out["prompt_rows_done"] = update.prompt_rows_done;
    out["prompt_rows"] = update.prompt_rows;
    out["finished"] = update.finished;
    return out;
  }

  // Raises the request's error.
  Dict outcome(std::size_t i) {
    engine::Request& request = at(i);
    engine::Outcome outcome = request.take_outcome();
    if (outcome.finish == engine::Finish::kFailed && outcome.error) {
      std::rethrow_exception(outcome.error);
    }
    Dict out;
    out["finish"] = finish_name(outcome.finish);
    out["stop_token"] = outcome.stop_token;
    out["n_reused"] = outcome.n_reused;
    out["logits"] = logits_array(request.spec(), std::move(outcome.logits));
    py::list targets(outcome.targets.size());
    for (std::size_t k = 0; k < outcome.targets.size(); ++k) {
      targets[k] = py::make_tuple(outcome.targets[k].logprob, outcome.targets[k].is_greedy);
    }
    out["targets"] = std::move(targets);
    out["captures"] = captures_dict(std::move(outcome.captures));
    const engine::Timings& times = outcome.timings;
    const auto since = [&](const std::optional<engine::Clock::time_point>& when) -> py::object {
      if (!when) return py::none();
      return py::float_(std::chrono::duration<double>(*when - times.submitted).count());
    };
    out["admitted"] = since(times.admitted);
    out["prompt_done"] = since(times.prompt_done);
    out["ended"] = since(times.finished);
    return out;
  }

  void choose(std::size_t i, const py::object& row) {
    const std::string where = strcat("[", at(i).spec().where, "]");
    const FloatArray array = float_array(row, where, "logits");
    if (array.ndim() != 1) {
      fail<ArgumentError>(where, " logits: got ", describe(row), ", need floats (vocab,)");
    }
    engine_->choose(requests_[i], {array.data(), array.data() + array.size()});
  }

  // Ends a generation of which n tokens are wanted; a session keeps those.
  void stop(std::size_t i, std::int64_t n) {
    if (at(i).spec().session) {
      engine_->end_at(requests_[i], n);
    } else {
      engine_->cancel(requests_[i]);
    }
  }
  void cancel_all() {
    for (std::size_t i = 0; i < requests_.size(); ++i) {
      if (!finished_[i]) engine_->cancel(requests_[i]);
    }
  }
  // stop() of all, with n_tokens for each, and waits until the engine has let go of them.
  void finish(const std::vector<std::int64_t>& n_tokens) {
    if (n_tokens.size() != requests_.size()) throw py::index_error("n_tokens");
    const GilRelease free_gil;
    for (std::size_t i = 0; i < requests_.size(); ++i) {
      if (!finished_[i]) stop(i, n_tokens[i]);
    }
    drain();
  }
  // Cancels all and waits until the engine has let go of them, so that sessions can be used again.
  void settle() {
    const GilRelease free_gil;
    cancel_all();
    drain();
  }

 private:
  void drain() {
    for (const auto& request : requests_) {
      while (!engine_->closed() && !request->finished()) {
        static_cast<void>(channel_->wait_for(std::chrono::milliseconds(5)));
      }
    }
  }

  engine::Request& at(std::size_t i) const {
    if (i >= requests_.size()) throw py::index_error("request");
    return *requests_[i];
  }

  static const char* finish_name(engine::Finish finish) {
    switch (finish) {
      case engine::Finish::kNone:
        return "none";
      case engine::Finish::kDone:
        return "done";
      case engine::Finish::kStopToken:
        return "stop";
      case engine::Finish::kLength:
        return "length";
      case engine::Finish::kCancelled:
        return "cancelled";
      case engine::Finish::kFailed:
        return "failed";
    }
    return "none";
  }

  py::object logits_array(const RequestSpec& spec, std::vector<float> logits) const {
    const auto vocab = static_cast<py::ssize_t>(engine_->facts().config.vocab);
    if (logits.empty()) return py::none();
    if (spec.logits == model::Logits::kAll) {
      const auto rows = static_cast<py::ssize_t>(logits.size()) / vocab;
      return own(std::move(logits), {rows, vocab});
    }
    return own(std::move(logits));
  }

  static Dict captures_dict(std::vector<model::Captured> captures) {
    Dict out;
    for (model::Captured& captured : captures) {
      const Shape shape = {static_cast<py::ssize_t>(captured.n_rows),
                           static_cast<py::ssize_t>(captured.n_cols)};
      if (captured.ids.empty()) {
        out[captured.name.c_str()] = own(std::move(captured.values), shape);
      } else {
        out[captured.name.c_str()] = own(std::move(captured.ids), shape);
      }
    }
    return out;
  }

  std::shared_ptr<engine::Engine> engine_;
  std::shared_ptr<engine::Channel> channel_;
  std::vector<std::shared_ptr<engine::Request>> requests_;
  std::vector<bool> finished_;
};

model::Logits logits_from(const std::string& name, const std::string& where) {
  if (name == "none") return model::Logits::kNone;
  if (name == "last") return model::Logits::kLast;
  if (name == "all") return model::Logits::kAll;
  fail<ArgumentError>("[", where, "] logits: got \"", name, "\", need \"last\", \"all\" or None");
}

std::vector<std::int32_t> plain_ids(const py::object& tokens, const std::string& where) {
  return token_ids(tokens, std::int64_t{1} << 31U, strcat("[", where, "]"));
}

RequestSpec make_request(const std::string& where, const py::object& tokens,
                         const std::string& logits, std::optional<SessionHandle*> session,
                         const std::vector<std::pair<std::int32_t, std::int32_t>>& targets,
                         const std::vector<std::string>& capture, bool reuse, int priority) {
  RequestSpec spec;
  spec.where = where;
  spec.tokens = plain_ids(tokens, where);
  spec.logits = logits_from(logits, where);
  if (session) spec.session = (*session)->state();
  for (const auto& [row, token] : targets) spec.targets.push_back({row, token});
  spec.capture = capture;
  spec.reuse = reuse;
  spec.priority = priority;
  return spec;
}

RequestSpec make_generation(const std::string& where, const py::object& tokens,
                            const SamplerSpec& sampler, std::int64_t max_tokens,
                            const std::vector<std::int32_t>& stop_tokens, bool external,
                            bool at_end, const std::vector<std::string>& capture, bool reuse,
                            int priority, std::optional<SessionHandle*> session) {
  RequestSpec spec = make_request(where, tokens, "none", session, {}, capture, reuse, priority);
  spec.generate.emplace();
  spec.generate->sampler = sampler;
  spec.generate->max_tokens = max_tokens;
  spec.generate->stop_tokens = stop_tokens;
  spec.generate->external = external;
  spec.generate->at_end = at_end;
  return spec;
}

}  // namespace

void register_engine_requests(py::module_& m) {
  py::class_<SamplerSpec>(m, "SamplerSpec", "How the next token is chosen (private).")
      .def(py::init<>())
      .def_readwrite("temperature", &SamplerSpec::temperature)
      .def_readwrite("top_k", &SamplerSpec::top_k)
      .def_readwrite("top_p", &SamplerSpec::top_p)
      .def_readwrite("min_p", &SamplerSpec::min_p)
      .def_readwrite("typical_p", &SamplerSpec::typical_p)
      .def_readwrite("repeat_penalty", &SamplerSpec::repeat_penalty)
      .def_readwrite("presence_penalty", &SamplerSpec::presence_penalty)
      .def_readwrite("frequency_penalty", &SamplerSpec::frequency_penalty)
      .def_readwrite("penalty_last_n", &SamplerSpec::penalty_last_n)
      .def_readwrite("logit_bias", &SamplerSpec::logit_bias)
      .def_readwrite("seed", &SamplerSpec::seed)
      .def_readwrite("n_logprobs", &SamplerSpec::n_logprobs);

  py::class_<RequestSpec>(m, "RequestSpec", "One sequence's work (private).")
      .def(py::init(&make_request), py::kw_only(), py::arg("where"), py::arg("tokens"),
           py::arg("logits") = "none", py::arg("session") = py::none(),
           py::arg("targets") = std::vector<std::pair<std::int32_t, std::int32_t>>(),
           py::arg("capture") = std::vector<std::string>(), py::arg("reuse") = false,
           py::arg("priority") = 0);
  m.def("generation_spec", &make_generation, py::kw_only(), py::arg("where"), py::arg("tokens"),
        py::arg("sampler"), py::arg("max_tokens"), py::arg("stop_tokens"),
        py::arg("external") = false, py::arg("at_end") = false,
        py::arg("capture") = std::vector<std::string>(), py::arg("reuse") = true,
        py::arg("priority") = 0, py::arg("session") = py::none(), "A RequestSpec that generates.");

  py::class_<Batch>(m, "Batch", "The requests of one call (private).")
      .def(py::init<const EngineHandle&, std::vector<RequestSpec>>(), py::arg("engine"),
           py::arg("specs"), "Submit them all, or none.")
      .def("__len__", &Batch::size)
      .def("wait", &Batch::wait, py::arg("seconds") = 3600.0,
           "Indices of requests with news; hears Ctrl-C.")
      .def("take", &Batch::take, py::arg("index"), "What has happened since the last call.")
      .def("outcome", &Batch::outcome, py::arg("index"), "The end of a request; raises its error.")
      .def("choose", &Batch::choose, py::arg("index"), py::arg("row"),
           "Answer a row of logits: the token is sampled from it.")
      .def("stop", &Batch::stop, py::arg("index"), py::arg("n_tokens"),
           "End a generation; a session keeps its first n tokens.")
      .def("finish", &Batch::finish, py::arg("n_tokens"),
           "End them all, as stop() does, and wait until the engine has let go of them.")
      .def("settle", &Batch::settle, "Cancel all and wait until the engine has let go of them.");
}

}  // namespace moesaic::bindings
