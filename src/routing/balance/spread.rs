//! How unevenly replicas are loaded: the variance of their loads.

/// The variance above which loads count as uneven, in percent².
pub const THRESHOLD: f64 = 50.0;

/// Mean and population variance of loads.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Spread {
    /// The mean, in percent.
    pub mean: f64,
    /// The population variance, in percent².
    pub variance: f64,
}

impl Spread {
    /// The spread of `loads`, each in percent; zeros when there are none.
    pub fn of(loads: impl Iterator<Item = f64> + Clone) -> Self {
        let count = loads.clone().count().max(1) as f64;
        // The sum of nothing is -0.
        let mean = 0.0 + loads.clone().sum::<f64>() / count;
        let variance = 0.0 + loads.map(|load| (load - mean).powi(2)).sum::<f64>() / count;
        Self { mean, variance }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_variance_of_the_reference_loads_is_270_around_70() {
        let spread = Spread::of([85.0, 60.0, 90.0, 45.0, 70.0].into_iter());
        assert_eq!((spread.mean, spread.variance), (70.0, 270.0));
        assert!(spread.variance > THRESHOLD);
        let none = Spread::of([].into_iter());
        assert_eq!(none, Spread::default());
        assert!(none.variance.is_sign_positive());
    }

    proptest! {
        #[test]
        fn it_is_zero_for_equal_loads_and_grows_with_the_square_of_the_distances(
            loads in prop::collection::vec(0.0..100.0f64, 1..9), at in 0.0..100.0f64,
        ) {
            let spread = Spread::of(loads.iter().copied());
            prop_assert!(spread.variance >= 0.0 && spread.variance <= 2500.0 + 1e-9);
            let doubled = Spread::of(loads.iter().map(|load| at + 2.0 * load));
            prop_assert!((doubled.variance - 4.0 * spread.variance).abs() < 1e-6);
            prop_assert!(Spread::of(loads.iter().map(|_| at)).variance < 1e-9);
        }
    }
}
