//! A share of something, exact to a millionth.

/// Between nothing and all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    millionths: u32,
}

const WHOLE: u32 = 1_000_000;

impl Share {
    /// A share of so many hundredths.
    pub(super) const fn percent(percent: u32) -> Self {
        Self {
            millionths: percent * (WHOLE / 100),
        }
    }

    /// Parses a decimal number from 0 to 1 with up to six places, for example `0.05`.
    pub fn parse(text: &str) -> Option<Self> {
        let (whole, places) = text.split_once('.').unwrap_or((text, "0"));
        let is_number =
            |digits: &str| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
        if !is_number(whole) || !is_number(places) || places.len() > 6 {
            return None;
        }
        let whole: u32 = whole.parse().ok()?;
        let places: u32 = format!("{places:0<6}").parse().ok()?;
        let millionths = whole.checked_mul(WHOLE)?.checked_add(places)?;
        (millionths <= WHOLE).then_some(Self { millionths })
    }

    /// Whether it is nothing.
    pub fn is_zero(self) -> bool {
        self.millionths == 0
    }

    /// This share of `whole`, rounded down.
    pub fn of(self, whole: u64) -> u64 {
        let share = u128::from(whole) * u128::from(self.millionths) / u128::from(WHOLE);
        // Never more than `whole`, so it fits.
        u64::try_from(share).unwrap_or(whole)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_from_nothing_to_all_are_read() {
        let of_a_million = |text| Share::parse(text).map(|share| share.of(1_000_000));
        for (text, share) in [
            ("0", 0),
            ("0.05", 50_000),
            ("0.5", 500_000),
            ("1.0", 1_000_000),
        ] {
            assert_eq!(of_a_million(text), Some(share), "{text}");
        }
        assert_eq!(of_a_million("0.000001"), Some(1));
        let wrong = [
            "",
            ".5",
            "1.",
            "5%",
            "-0.1",
            "+1",
            "1.1",
            "2",
            "0.0000001",
            "1e-3",
            "0,5",
            "NaN",
            "99999999999",
        ];
        for text in wrong {
            assert_eq!(of_a_million(text), None, "{text}");
        }
        assert_eq!(Share::percent(5), Share::parse("0.05").unwrap());
        assert_eq!(Share::percent(100).of(u64::MAX), u64::MAX);
    }
}
