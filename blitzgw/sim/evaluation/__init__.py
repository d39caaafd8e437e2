"""What an evaluation is made of: arrivals, systems, records of runs, statistics, figures."""
