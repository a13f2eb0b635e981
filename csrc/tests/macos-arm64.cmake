# Cross-compiles and links for macOS on Apple silicon; .ci/macos writes the tools into SEDE_ZIG.
set(CMAKE_SYSTEM_NAME Darwin)
set(CMAKE_SYSTEM_PROCESSOR arm64)
set(CMAKE_CXX_COMPILER $ENV{SEDE_ZIG}/c++)
set(CMAKE_AR $ENV{SEDE_ZIG}/ar)
set(CMAKE_RANLIB $ENV{SEDE_ZIG}/ranlib)
set(CMAKE_STRIP true)  # Linux's does not know the format
