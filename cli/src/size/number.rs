//! Numbers as people write and read them.

/// Reads a number above 0.
pub fn positive(text: &str) -> Result<f64, &'static str> {
    let number = text.parse().ok().filter(|number: &f64| *number > 0.0 && number.is_finite());
    number.ok_or("a number above 0 expected")
}

/// Reads a share.
pub fn share(text: &str) -> Result<f64, &'static str> {
    let number = text.parse().ok().filter(|number| (0.0..=1.0).contains(number));
    number.ok_or("a share from 0 to 1 expected")
}

/// Reads a whole number from 1 on, as many as there may be of machines, workers or servers.
pub fn count(text: &str) -> Result<u64, &'static str> {
    let number: Option<u32> = text.parse().ok().filter(|number| *number > 0);
    number.map(u64::from).ok_or("a number from 1 on expected")
}

/// Reads a length of time, in seconds.
pub fn seconds(text: &str) -> Result<f64, &'static str> {
    let units = [("s", 1.0), ("m", 60.0), ("h", 3600.0), ("d", 86_400.0), ("", 1.0)];
    unit(text, &units).ok_or("a time such as 300, 5m, 1h or 1d expected")
}

/// Reads a size, in bytes.
pub fn size(text: &str) -> Result<f64, &'static str> {
    let text = text.to_lowercase();
    let (mb, gb) = (1024.0 * 1024.0, 1024.0 * 1024.0 * 1024.0);
    let units = [("mb", mb), ("m", mb), ("gb", gb), ("g", gb)];
    unit(&text, &units).ok_or("a size such as 512m or 16g expected")
}

/// A number of units, the first of them that it ends with.
fn unit(text: &str, units: &[(&str, f64)]) -> Option<f64> {
    let (digits, one) =
        units.iter().find_map(|(unit, one)| Some((text.strip_suffix(unit)?, *one)))?;
    // Digits, and perhaps a fraction: no sign, no exponent, and neither end left out.
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, "0"));
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number(whole) || !is_number(fraction) {
        return None;
    }
    positive(digits).ok().map(|number| number * one)
}

/// A number with commas between its thousands; `text` begins with its digits.
pub fn grouped(text: &str) -> String {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let mut grouped = String::new();
    for (left, c) in (0..end).rev().zip(text.chars()) {
        grouped.push(c);
        if left > 0 && left % 3 == 0 {
            grouped.push(',');
        }
    }
    grouped.push_str(text.get(end..).unwrap_or_default());
    grouped
}

/// A whole number with commas.
pub fn whole(number: f64) -> String {
    grouped(&format!("{number:.0}"))
}

/// A share in hundredths.
pub fn percent(share: f64) -> String {
    format!("{:.0}%", share * 100.0)
}

/// A number with so many digits that count at the most, as `%g` of C writes it.
pub fn short(number: f64, digits: usize) -> String {
    let most = digits.max(1);
    let exact = format!("{number:.*e}", most.saturating_sub(1));
    let (mantissa, exponent) = exact.split_once('e').unwrap_or((&exact, "0"));
    let trimmed = |text: &str| match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_string(),
        false => text.to_string(),
    };
    let exponent: i32 = exponent.parse().unwrap_or_default();
    match usize::try_from(exponent) {
        Ok(exponent) if exponent < most => {
            trimmed(&format!("{number:.*}", most.saturating_sub(exponent).saturating_sub(1)))
        }
        Err(_) if exponent >= -4 => {
            let places = most.saturating_sub(1).saturating_add(exponent.unsigned_abs() as usize);
            trimmed(&format!("{number:.places$}"))
        }
        _ => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{}e{sign}{:02}", trimmed(mantissa), exponent.unsigned_abs())
        }
    }
}

/// A number of bytes; KB, MB and more are powers of 1024.
pub fn bytes(number: f64) -> String {
    let mut number = number;
    for unit in ["bytes", "KB", "MB", "GB", "TB"] {
        if number < 1024.0 || unit == "TB" {
            return match unit {
                "bytes" => format!("{} {unit}", whole(number)),
                _ if number >= 100.0 => format!("{} {unit}", whole(number)),
                _ => format!("{} {unit}", short(number, 3)),
            };
        }
        number /= 1024.0;
    }
    whole(number)
}

/// A length of time in the largest unit of which there is a whole number.
pub fn span(seconds: f64) -> String {
    for (unit, one) in [("d", 86_400.0), ("h", 3600.0), ("m", 60.0)] {
        if seconds >= one && seconds % one == 0.0 {
            return format!("{}{unit}", short(seconds / one, 6));
        }
    }
    format!("{}s", short(seconds, 6))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_or_said_to_be_none() {
        assert_eq!(positive("2.5e3"), Ok(2500.0));
        assert_eq!(share("0"), Ok(0.0));
        assert_eq!(count("12"), Ok(12));
        assert_eq!(seconds("1.5h"), Ok(5400.0));
        assert_eq!(seconds("300"), Ok(300.0));
        assert_eq!(size("512M"), Ok(536_870_912.0));
        assert_eq!(size("1.5gb"), Ok(1_610_612_736.0));
        for wrong in ["", "0", "-1", "inf", "nan", "x"] {
            assert!(positive(wrong).is_err(), "{wrong}");
            assert!(count(wrong).is_err(), "{wrong}");
            assert!(seconds(wrong).is_err(), "{wrong}");
            assert!(size(wrong).is_err(), "{wrong}");
        }
        assert!(["-0.1", "1.1", "nan"].iter().all(|wrong| share(wrong).is_err()));
        assert!(
            ["5x", "m", "1e3s", ".5h", "1.h", "+5m"].iter().all(|wrong| seconds(wrong).is_err())
        );
        assert!(["512", "1kb", "g", "1e1g"].iter().all(|wrong| size(wrong).is_err()));
    }

    #[test]
    fn numbers_are_written_for_people() {
        assert_eq!(whole(1234567.0), "1,234,567");
        assert_eq!(whole(999.5), "1,000");
        assert_eq!(whole(0.5), "0", "halves go to the even number");
        assert_eq!(grouped("1048.6"), "1,048.6");
        assert_eq!(percent(0.085), "8%");
        assert_eq!(short(99.96, 3), "100");
        assert_eq!(short(12.0, 3), "12");
        assert_eq!(short(0.0, 3), "0");
        assert_eq!(short(0.05, 6), "0.05");
        assert_eq!(short(1e6, 6), "1e+06");
        assert_eq!(short(1.25e-5, 6), "1.25e-05");
        assert_eq!(bytes(1023.0), "1,023 bytes");
        assert_eq!(bytes(1024.0), "1 KB");
        assert_eq!(bytes(157.4 * 1024.0 * 1024.0), "157 MB");
        assert_eq!(bytes(4_398_046_511_104.0 * 5000.0), "20,000 TB");
        assert_eq!(span(7200.0), "2h");
        assert_eq!(span(86_400.0), "1d");
        assert_eq!(span(90.5), "90.5s");
    }
}
