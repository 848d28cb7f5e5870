//! The learning rate as a function of the step.
//!
//! A schedule is a pure function, not an object that is stepped: a resumed run asks for its step and gets the
//! same number, and nothing has to be saved. All arithmetic is in f64 and in the order in which PyTorch does
//! it, so the rates agree with the released program's to the last bits.

use serde::{Deserialize, Serialize};

/// How a rate moves from one value to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Anneal {
    /// Half a cosine.
    Cos,
    /// A straight line.
    Linear,
}

impl Anneal {
    /// The value a fraction `part` of the way from `start` to `end`.
    fn between(self, start: f64, end: f64, part: f64) -> f64 {
        match self {
            Anneal::Cos => end + (start - end) / 2.0 * ((std::f64::consts::PI * part).cos() + 1.0),
            Anneal::Linear => (end - start) * part + start,
        }
    }
}

/// The learning rate as a function of the step. Steps are counted from 0: `rate(0)` is the rate of the first
/// update.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Schedule {
    /// Up from `max_rate / div_factor` to `max_rate`, then down to `max_rate / div_factor / final_div_factor`
    /// (PyTorch's `OneCycleLR` with two phases).
    OneCycle {
        /// The highest rate.
        max_rate: f64,
        /// Steps of the whole run; the last one has the lowest rate.
        total_steps: u64,
        /// The fraction of the steps spent going up, in \[0, 1\].
        warmup: f64,
        /// The shape of both phases.
        anneal: Anneal,
        /// Highest rate over first rate.
        div_factor: f64,
        /// First rate over last rate.
        final_div_factor: f64,
    },
    /// The same rate at every step.
    Constant {
        /// That rate.
        rate: f64,
    },
    /// Up in a straight line from 0 over `warmup_steps`, then along `cycles` periods of a cosine; 0.5 cycles
    /// end at 0, 0.4 (the LLaMA recipe) a little above.
    WarmupCosine {
        /// The highest rate.
        max_rate: f64,
        /// Steps going up.
        warmup_steps: u64,
        /// Steps of the whole run.
        total_steps: u64,
        /// Periods of the cosine after the warm-up.
        cycles: f64,
    },
    /// Up in a straight line from 0 over `warmup_steps`, then down to 0 in another, at `total_steps`.
    WarmupLinear {
        /// The highest rate.
        max_rate: f64,
        /// Steps going up.
        warmup_steps: u64,
        /// Steps of the whole run.
        total_steps: u64,
    },
    /// Up in a straight line from 0 over `warmup_steps`, then constant.
    WarmupConstant {
        /// The highest rate.
        max_rate: f64,
        /// Steps going up.
        warmup_steps: u64,
    },
}

/// A schedule that cannot be followed.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum ScheduleError {
    /// A rate that is not a finite number of at least 0.
    #[error("the learning rate is {0}; give a finite number that is not negative (--lr)")]
    Rate(f64),
    /// A run of no steps.
    #[error("a schedule over 0 steps has no rates; give at least one step (--iterations)")]
    NoSteps,
    /// A warm-up outside of the run.
    #[error("the warm-up is {0} of the run; give a fraction between 0 and 1 (--warmup-percent)")]
    Warmup(f64),
    /// A divisor or cycle count that makes no rate.
    #[error("{name} of the schedule is {value}; it must be a finite number above 0")]
    Factor {
        /// The setting.
        name: &'static str,
        /// What it was.
        value: f64,
    },
}

impl Schedule {
    /// OneCycle as the released program runs it: from `max_rate / 100` over `max_rate` to `max_rate / 5`.
    pub fn released(max_rate: f64, total_steps: u64, warmup: f64, anneal: Anneal) -> Schedule {
        Schedule::OneCycle { max_rate, total_steps, warmup, anneal, div_factor: 1e2, final_div_factor: 0.05 }
    }

    /// Checks that every step has a finite rate.
    ///
    /// # Errors
    /// Names the setting at fault and the flag that sets it.
    pub fn validate(&self) -> Result<(), ScheduleError> {
        let rate_is_usable = |rate: f64| {
            if rate.is_finite() && rate >= 0.0 { Ok(()) } else { Err(ScheduleError::Rate(rate)) }
        };
        let above_zero = |name, value: f64| {
            if value.is_finite() && value > 0.0 { Ok(()) } else { Err(ScheduleError::Factor { name, value }) }
        };
        match *self {
            Schedule::Constant { rate } | Schedule::WarmupConstant { max_rate: rate, .. } => {
                rate_is_usable(rate)
            }
            Schedule::OneCycle { max_rate, total_steps, warmup, div_factor, final_div_factor, .. } => {
                rate_is_usable(max_rate)?;
                above_zero("div_factor", div_factor)?;
                above_zero("final_div_factor", final_div_factor)?;
                if total_steps == 0 {
                    return Err(ScheduleError::NoSteps);
                }
                if !(0.0..=1.0).contains(&warmup) { Err(ScheduleError::Warmup(warmup)) } else { Ok(()) }
            }
            Schedule::WarmupCosine { max_rate, warmup_steps, total_steps, .. }
            | Schedule::WarmupLinear { max_rate, warmup_steps, total_steps } => {
                rate_is_usable(max_rate)?;
                if let Schedule::WarmupCosine { cycles, .. } = *self {
                    above_zero("cycles", cycles)?;
                }
                if total_steps == 0 {
                    return Err(ScheduleError::NoSteps);
                }
                if warmup_steps > total_steps {
                    return Err(ScheduleError::Warmup(warmup_steps as f64 / total_steps as f64));
                }
                Ok(())
            }
        }
    }

    /// The learning rate of `step`. Steps past the end keep the last rate.
    pub fn rate(&self, step: u64) -> f64 {
        match *self {
            Schedule::Constant { rate } => rate,
            Schedule::OneCycle { max_rate, total_steps, warmup, anneal, div_factor, final_div_factor } => {
                let first = max_rate / div_factor;
                let last = first / final_div_factor;
                let end = total_steps.saturating_sub(1) as f64;
                let peak = warmup * total_steps as f64 - 1.0; // may lie before step 0: then there is no way up
                let step = (step as f64).min(end);
                if step < peak {
                    anneal.between(first, max_rate, step / peak)
                } else if end > peak {
                    anneal.between(max_rate, last, (step - peak) / (end - peak))
                } else {
                    max_rate
                }
            }
            Schedule::WarmupCosine { max_rate, warmup_steps, total_steps, cycles } => {
                if step < warmup_steps {
                    return max_rate * (step as f64 / warmup_steps as f64);
                }
                let down = total_steps.saturating_sub(warmup_steps).max(1) as f64;
                let progress = ((step - warmup_steps) as f64 / down).min(1.0);
                max_rate * (0.5 * (1.0 + (std::f64::consts::PI * cycles * 2.0 * progress).cos())).max(0.0)
            }
            Schedule::WarmupLinear { max_rate, warmup_steps, total_steps } => {
                if step < warmup_steps {
                    return max_rate * (step as f64 / warmup_steps as f64);
                }
                let down = total_steps.saturating_sub(warmup_steps).max(1) as f64;
                max_rate * (total_steps.saturating_sub(step) as f64 / down)
            }
            Schedule::WarmupConstant { max_rate, warmup_steps } => {
                if step < warmup_steps {
                    max_rate * (step as f64 / warmup_steps as f64)
                } else {
                    max_rate
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_rates(schedule: &Schedule, expected: &[(u64, f64)]) {
        schedule.validate().unwrap();
        for &(step, rate) in expected {
            let found = schedule.rate(step);
            assert!((found - rate).abs() <= 1e-15 * rate.max(1e-2), "step {step}: {found}, expected {rate}");
        }
    }

    fn from_zero(rates: &[f64]) -> Vec<(u64, f64)> {
        (0..).zip(rates.iter().copied()).collect()
    }

    /// The rates of the released program's 20-step run.
    #[test]
    fn one_cycle_matches_the_released_run() {
        let expected = [
            2.0000000000000052e-05,
            0.002,
            0.0019878462024097666,
            0.0019517540966287267,
            0.001892820323027551,
            0.0018128355544951825,
            0.0017142300877492315,
            0.0016,
            0.001473616114660535,
            0.0013389185421335446,
            0.0012000000000000001,
            0.0010610814578664559,
            0.0009263838853394652,
            0.0008000000000000001,
            0.0006857699122507686,
            0.0005871644455048178,
            0.0005071796769724491,
            0.00044824590337127335,
            0.0004121537975902336,
            0.0004,
        ];
        assert_rates(&Schedule::released(2e-3, 20, 0.1, Anneal::Cos), &from_zero(&expected));
    }

    /// Values of torch.optim.lr_scheduler.OneCycleLR: the peak between two steps, before the first, and far
    /// away.
    #[test]
    fn one_cycle_matches_pytorch_off_the_grid() {
        let linear = [
            2e-05,
            0.00134,
            0.0018933333333333335,
            0.00168,
            0.0014666666666666667,
            0.0012533333333333333,
            0.0010400000000000001,
            0.0008266666666666667,
            0.0006133333333333334,
            0.00039999999999999996,
        ];
        assert_rates(&Schedule::released(2e-3, 10, 0.25, Anneal::Linear), &from_zero(&linear));
        let early = [
            0.0009352352419567363,
            0.0007381460217685231,
            0.00048618896534758705,
            0.0002794345512528175,
            0.0002,
        ];
        assert_rates(&Schedule::released(1e-3, 5, 0.02, Anneal::Cos), &from_zero(&early));
        let paper = [
            (0, 2.0000000000000052e-05),
            (1, 2.0000212130653373e-05),
            (4799, 0.002),
            (4800, 0.0019999999999286353),
            (120_000, 0.0012256305818558733),
            (239_999, 0.0004),
        ];
        assert_rates(&Schedule::released(2e-3, 240_000, 0.02, Anneal::Cos), &paper);
    }

    /// The LLaMA recipe: 15,000 steps, 450 of warm-up, 0.4 cycles.
    #[test]
    fn warmup_cosine_stops_before_zero() {
        let schedule =
            Schedule::WarmupCosine { max_rate: 2e-5, warmup_steps: 450, total_steps: 15_000, cycles: 0.4 };
        let expected = [
            (0, 0.0),
            (1, 4.444444444444445e-08),
            (449, 1.9955555555555557e-05),
            (450, 2e-05),
            (7_725, 1.3090169943749475e-05),
            (14_999, 1.910845479662952e-06),
            (15_000, 1.9098300562505266e-06),
        ];
        assert_rates(&schedule, &expected);
    }

    /// Worked by hand after transformers' get_linear_schedule_with_warmup and get_constant_schedule_with_warmup.
    #[test]
    fn straight_lines_end_where_they_should() {
        let linear = Schedule::WarmupLinear { max_rate: 1.0, warmup_steps: 2, total_steps: 10 };
        assert_rates(&linear, &[(0, 0.0), (1, 0.5), (2, 1.0), (3, 0.875), (9, 0.125), (10, 0.0), (11, 0.0)]);
        let constant = Schedule::WarmupConstant { max_rate: 3.0, warmup_steps: 4 };
        assert_rates(&constant, &[(0, 0.0), (1, 0.75), (3, 2.25), (4, 3.0), (1_000_000, 3.0)]);
        let at_once = Schedule::WarmupLinear { max_rate: 1.0, warmup_steps: 0, total_steps: 4 };
        assert_rates(&at_once, &[(0, 1.0), (3, 0.25)]);
        let only_up = Schedule::WarmupLinear { max_rate: 1.0, warmup_steps: 5, total_steps: 4 };
        assert_eq!(only_up.validate(), Err(ScheduleError::Warmup(1.25)));
    }

    #[test]
    fn degenerate_runs_have_finite_rates() {
        for total_steps in 1..4 {
            for warmup in [0.0, 1.0 / 3.0, 0.5, 1.0] {
                for step in 0..6 {
                    let rate = Schedule::released(1.0, total_steps, warmup, Anneal::Cos).rate(step);
                    assert!(rate.is_finite() && rate > 0.0, "{total_steps} {warmup} {step}: {rate}");
                }
            }
        }
        let no_way_down =
            Schedule::WarmupCosine { max_rate: 1.0, warmup_steps: 3, total_steps: 3, cycles: 0.5 };
        assert_eq!(no_way_down.rate(3), 1.0);
    }

    #[test]
    fn impossible_schedules_are_refused() {
        assert!(Schedule::Constant { rate: f64::NAN }.validate().is_err());
        assert!(Schedule::Constant { rate: -1.0 }.validate().is_err());
        assert_eq!(Schedule::released(1.0, 0, 0.1, Anneal::Cos).validate(), Err(ScheduleError::NoSteps));
        assert_eq!(Schedule::released(1.0, 9, 1.5, Anneal::Cos).validate(), Err(ScheduleError::Warmup(1.5)));
    }

    #[test]
    fn a_schedule_survives_json() {
        let schedule = Schedule::released(2e-3, 20, 0.1, Anneal::Linear);
        let text = serde_json::to_string(&schedule).unwrap();
        assert_eq!(serde_json::from_str::<Schedule>(&text).unwrap(), schedule);
    }
}
