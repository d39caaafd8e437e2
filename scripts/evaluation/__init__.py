"""What evaluations do over HTTP and on testbeds; `blitzgw/sim/evaluation` needs neither."""
