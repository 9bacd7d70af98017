//! Tests of the decision as a whole: the table against dify-api's rules, the traps, the measured writes.
