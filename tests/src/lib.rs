//! Shared pieces of the tests: fixtures, tolerances, the case table.
