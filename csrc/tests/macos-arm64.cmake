# Cross-compiles and links for macOS on Apple silicon; .ci/macos writes the tools into ZIG_TOOLS.
set(CMAKE_SYSTEM_NAME Darwin)
set(CMAKE_SYSTEM_PROCESSOR arm64)
set(CMAKE_CXX_COMPILER $ENV{ZIG_TOOLS}/c++)
set(CMAKE_AR $ENV{ZIG_TOOLS}/ar)
set(CMAKE_RANLIB $ENV{ZIG_TOOLS}/ranlib)
set(CMAKE_STRIP true)  # Linux's does not know the format
