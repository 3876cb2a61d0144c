#!/bin/sh
# check_isa_objects.sh OBJECT...
#
# Fails if an object compiled with instruction-set flags has a weak symbol, which the
# linker may use for portable code, or a static initializer, which runs before dispatch.
set -eu
status=0
for object in "$@"; do
  if nm -C "$object" | grep -E ' [WVu] ' | grep -v __gxx_personality; then
    echo "$object: weak symbol: the linker may use it for portable code"
    status=1
  fi
  if objdump -h "$object" | grep -qE '\.init_array|\.ctors'; then
    echo "$object: static initializer: runs before dispatch"
    status=1
  fi
done
exit $status
