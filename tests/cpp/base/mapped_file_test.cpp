// Faults in a mapped file: the process lives, and nothing that was read as zeros passes check.
#include "base/mapped_file.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "base/errors.h"
#include "base/thrown.h"

namespace moesaic {
namespace {

using testing::thrown;

constexpr std::size_t kPage = 4096;

// A file of `n` bytes of 1, removed at the end.
class OnesFile {
 public:
  explicit OnesFile(std::size_t n) {
    fd_ = ::mkstemp(path_.data());
    const std::vector<char> ones(n, 1);
    EXPECT_EQ(::write(fd_, ones.data(), n), static_cast<ssize_t>(n));
  }
  ~OnesFile() {
    ::close(fd_);
    ::unlink(path_.c_str());
  }
  int fd() const { return fd_; }
  const std::string& path() const { return path_; }

 private:
  std::string path_ = "/tmp/mapped_file_test.XXXXXX";
  int fd_ = -1;
};

std::uint64_t sum_of(std::span<const std::uint8_t> bytes) {
  std::uint64_t sum = 0;
  for (const std::uint8_t byte : bytes) sum += *const_cast<const volatile std::uint8_t*>(&byte);
  return sum;
}

TEST(MappedFile, ShowsTheFile) {
  const OnesFile file(3 * kPage + 17);
  const MappedFile mapped(file.fd(), 3 * kPage + 17, file.path());
  EXPECT_EQ(sum_of(mapped.bytes()), 3 * kPage + 17);
  EXPECT_NO_THROW(mapped.check_intact());
  const MappedFile nothing(file.fd(), 0, file.path());
  EXPECT_TRUE(nothing.bytes().empty());
  EXPECT_NO_THROW(nothing.check_intact());
}

TEST(MappedFile, AFileThatIsCutOffIsAnErrorAndNotTheEnd) {
  constexpr std::size_t kPages = 300;  // more than are replaced one by one
  const OnesFile file(kPages * kPage);
  const MappedFile mapped(file.fd(), kPages * kPage, file.path());
  ASSERT_EQ(::ftruncate(file.fd(), 100 * kPage), 0);
  std::vector<std::thread> readers;
  for (int t = 0; t < 4; ++t) {
    readers.emplace_back([&] { EXPECT_EQ(sum_of(mapped.bytes()), 100 * kPage); });
  }
  for (std::thread& reader : readers) reader.join();
  const std::string text = thrown<IoError>([&] { mapped.check_intact(); });
  EXPECT_NE(text.find(file.path()), std::string::npos) << text;
  EXPECT_NE(text.find("cut off to 409600 bytes"), std::string::npos) << text;
  EXPECT_NO_THROW(mapped.check_read(0, 100 * kPage));
  EXPECT_THROW(mapped.check_read(99 * kPage, 2 * kPage), IoError);
  // It stays an error when the bytes are back: zeros were read, and some are mapped still.
  ASSERT_EQ(::ftruncate(file.fd(), kPages * kPage), 0);
  EXPECT_THROW(mapped.check_intact(), IoError);
}

TEST(MappedFile, AFileThatIsWrittenToIsAnError) {
  const OnesFile file(kPage);
  const MappedFile mapped(file.fd(), kPage, file.path());
  const timespec times[2] = {{0, UTIME_OMIT}, {12345, 678}};
  ASSERT_EQ(::futimens(file.fd(), times), 0);
  const std::string text = thrown<IoError>([&] { mapped.check_intact(); });
  EXPECT_NE(text.find("changed while it was in use"), std::string::npos) << text;
  EXPECT_NO_THROW(mapped.check_read(0, kPage));  // what was read was there
}

TEST(MappedFile, ARenamedOrRemovedFileIsTheSameFile) {
  const OnesFile file(kPage);
  const OnesFile other(kPage);
  const MappedFile mapped(file.fd(), kPage, file.path());
  ASSERT_EQ(::rename(other.path().c_str(), file.path().c_str()), 0);
  EXPECT_NO_THROW(mapped.check_intact());
  EXPECT_EQ(sum_of(mapped.bytes()), kPage);
}

TEST(MappedFile, MovedAndClosedMappingsLeaveTheTable) {
  const OnesFile file(2 * kPage);
  MappedFile kept(file.fd(), 2 * kPage, file.path());
  for (int i = 0; i < 10'000; ++i) {  // more than the table has places
    MappedFile one(file.fd(), kPage, file.path());
    MappedFile two = std::move(one);
    one = std::move(two);
    two = MappedFile(file.fd(), kPage, file.path());
    ASSERT_NO_THROW(one.check_intact());
  }
  MappedFile moved = std::move(kept);
  ASSERT_EQ(::ftruncate(file.fd(), kPage), 0);
  EXPECT_EQ(sum_of(moved.bytes()), kPage);
  EXPECT_THROW(moved.check_intact(), IoError);
}

// In a child, since it ends it: returns how the child ended.
int ended(void (*work)()) {
  const pid_t pid = ::fork();
  if (pid == 0) {
    const rlimit none{0, 0};
    ::setrlimit(RLIMIT_CORE, &none);
    ::signal(SIGBUS, SIG_DFL);  // a sanitizer has a handler of its own
    work();
    ::_exit(0);
  }
  int status = 0;
  EXPECT_EQ(::waitpid(pid, &status, 0), pid);
  return status;
}

void read_beyond_a_foreign_file() {
  char path[] = "/tmp/mapped_file_test.XXXXXX";
  const int fd = ::mkstemp(path);
  ::unlink(path);
  if (::ftruncate(fd, 2 * kPage) != 0) ::_exit(2);
  const MappedFile ours(fd, kPage, "ours");
  void* theirs = ::mmap(nullptr, 2 * kPage, PROT_READ, MAP_SHARED, fd, 0);
  if (::ftruncate(fd, kPage) != 0) ::_exit(2);
  if (sum_of({static_cast<const std::uint8_t*>(theirs), 2 * kPage}) == 12345) ::_exit(3);
  ::_exit(4);
}

TEST(MappedFile, FaultsOfOthersEndTheProcessAsBefore) {
  const int status = ended(read_beyond_a_foreign_file);
  EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS) << status;
  const int sent = ended([] {
    char path[] = "/tmp/mapped_file_test.XXXXXX";
    const int fd = ::mkstemp(path);
    ::unlink(path);
    if (::ftruncate(fd, kPage) != 0) ::_exit(2);
    const MappedFile ours(fd, kPage, "ours");
    ::raise(SIGBUS);
  });
  EXPECT_TRUE(WIFSIGNALED(sent) && WTERMSIG(sent) == SIGBUS) << sent;
}

TEST(MappedFile, AHandlerThatWasThereBeforeIsAsked) {
  const int status = ended([] {
    struct sigaction theirs {};
    theirs.sa_handler = [](int) { ::_exit(7); };
    ::sigaction(SIGBUS, &theirs, nullptr);
    read_beyond_a_foreign_file();
  });
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 7) << status;
}

TEST(MappedFile, AForkedChildIsGuardedToo) {
  const OnesFile file(2 * kPage);
  const MappedFile mapped(file.fd(), 2 * kPage, file.path());
  ASSERT_EQ(::ftruncate(file.fd(), kPage), 0);
  const pid_t pid = ::fork();
  if (pid == 0) ::_exit(sum_of(mapped.bytes()) == kPage ? 0 : 1);
  int status = 0;
  ASSERT_EQ(::waitpid(pid, &status, 0), pid);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  EXPECT_NO_THROW(mapped.check_read(0, 2 * kPage));  // what the child met is the child's
}

}  // namespace
}  // namespace moesaic
