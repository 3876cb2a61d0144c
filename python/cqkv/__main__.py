"""python -m cqkv"""

from cqkv.command import main

main()
