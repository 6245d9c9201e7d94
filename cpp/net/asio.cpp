// asio's own code, compiled here and nowhere else.
#include "net/asio.h"

#include <asio/impl/src.hpp>
