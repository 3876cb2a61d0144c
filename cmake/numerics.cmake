# What all our targets compute by: linked as $<BUILD_INTERFACE:cqkv_numerics>, beside the warnings.
#
# Products and sums are not fused behind the source's back. With FMA at hand g++ and clang do so by
# themselves, and then the same text gives other numbers in another file or with another compiler.
# Where fusing is wanted the source says so (multiply_add), or the files do: the dense products of
# src/model_pass.
add_library(cqkv_numerics INTERFACE)
target_compile_options(cqkv_numerics INTERFACE -ffp-contract=off)
