"""`python -m blitzgw.worker --fd N`: a worker on the socket that it inherited as N."""

import sys

from blitzgw.worker.main import main

main(sys.argv[1:])
