// The only way asio comes in: standalone, compiled once (asio.cpp). TLS is not asio's here: tls.h
// drives OpenSSL itself, so that every byte of a handshake is counted.
#pragma once

#define ASIO_STANDALONE
#define ASIO_SEPARATE_COMPILATION
#define ASIO_NO_DEPRECATED
// asio 1.22 asks for aligned_alloc by a macro of libstdc++ that is set or not by what was included
// before it: without this, one file allocates with it and another frees with operator delete.
#define ASIO_DISABLE_STD_ALIGNED_ALLOC
#if defined(__SANITIZE_THREAD__)
// A fence alone is not understood by ThreadSanitizer; asio's own locks order what matters.
#define ASIO_DISABLE_FENCED_BLOCK
#endif

#if defined(__GNUC__) && !defined(__clang__)
// At -O1 GCC 12 inlines one half of asio's pair of operators for coroutine frames and takes the
// other for a mistake. To the end of the file: it is reported where coroutines end.
#pragma GCC diagnostic ignored "-Wmismatched-new-delete"
#endif

#include <asio/awaitable.hpp>
#include <asio/co_spawn.hpp>
#include <asio/detached.hpp>
#include <asio/executor_work_guard.hpp>
#include <asio/io_context.hpp>
#include <asio/ip/tcp.hpp>
#include <asio/post.hpp>
#include <asio/redirect_error.hpp>
#include <asio/steady_timer.hpp>
#include <asio/use_awaitable.hpp>
