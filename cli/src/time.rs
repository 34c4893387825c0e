//! Times as people write and read them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use openssl::asn1::Asn1Time;

const DAY: i64 = 86_400;
/// As dates of HTTP have them.
const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
/// The longest time that can be asked for, in milliseconds: an hour.
const MAX_MS: u64 = 3_600_000;

/// Reads a length of time as nginx writes it: `5s`, `500ms`, `1m`; seconds without a unit.
pub fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = match text.strip_prefix(digits) {
        Some("ms") => 1,
        Some("" | "s") => 1000,
        Some("m") => 60_000,
        _ => 0,
    };
    let number: u64 = digits.parse().unwrap_or_default();
    match number.checked_mul(unit).filter(|&ms| ms > 0 && ms <= MAX_MS) {
        Some(ms) => Ok(Duration::from_millis(ms)),
        None => Err("a time such as 5s or 500ms expected, an hour at most".into()),
    }
}

/// Now, in seconds since 1970.
pub fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// A moment in UTC (Howard Hinnant, "chrono-compatible low-level date algorithms").
pub fn utc(seconds: i64) -> String {
    let (days, rest) = (seconds.div_euclid(DAY), seconds.rem_euclid(DAY));
    let Some(z) = days.checked_add(719_468) else { return seconds.to_string() };
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let leap = doe / 1460;
    let yoe =
        (doe.saturating_sub(leap).saturating_add(doe / 36_524)).saturating_sub(doe / 146_096) / 365;
    let doy = doe
        .saturating_sub(yoe.saturating_mul(365).saturating_add(yoe / 4).saturating_sub(yoe / 100));
    let mp = doy.saturating_mul(5).saturating_add(2) / 153;
    let day = doy.saturating_sub(mp.saturating_mul(153).saturating_add(2) / 5).saturating_add(1);
    let month = if mp < 10 { mp.saturating_add(3) } else { mp.saturating_sub(9) };
    let year = yoe.saturating_add(era.saturating_mul(400)).saturating_add(i64::from(month <= 2));
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// Reads the date of an HTTP message (RFC 9110, section 5.6.7), in seconds since 1970.
pub fn http_date(text: &str) -> Option<i64> {
    let words: Vec<_> = text.trim().split([' ', ':']).collect();
    let [_, day, month, year, hour, minute, second, "GMT"] = *words.as_slice() else { return None };
    let (_, month) = MONTHS.iter().zip(1u8..).find(|(name, _)| **name == month)?;
    // OpenSSL knows the calendar, and which of these are no numbers.
    let at = Asn1Time::from_str(&format!("{year}{month:02}{day}{hour}{minute}{second}Z")).ok()?;
    let since = Asn1Time::from_unix(0).ok()?.diff(&at).ok()?;
    Some(i64::from(since.days).saturating_mul(DAY).saturating_add(since.secs.into()))
}

/// A length of time in its largest units.
pub fn span(seconds: i64) -> String {
    match seconds {
        ..0 => format!("-{}", span(seconds.saturating_neg())),
        0..120 => format!("{seconds}s"),
        120..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3600..172_800 => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d{:02}h", seconds / DAY, seconds / 3600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_read_as_nginx_reads_them() {
        assert_eq!(duration("5s"), Ok(Duration::from_secs(5)));
        assert_eq!(duration("5"), Ok(Duration::from_secs(5)));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        for wrong in ["", "0", "s", "5x", "-1s", "1.5s", "61m", "99999999999999999999"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn moments_are_those_of_the_calendar() {
        assert_eq!(utc(0), "1970-01-01T00:00:00Z");
        assert_eq!(utc(951_782_399), "2000-02-28T23:59:59Z");
        assert_eq!(utc(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(utc(1_800_000_000), "2027-01-15T08:00:00Z");
        assert_eq!(utc(-1), "1969-12-31T23:59:59Z");
        assert!(!utc(i64::MAX).is_empty());
    }

    #[test]
    fn dates_of_http_are_read() {
        assert_eq!(http_date("Thu, 01 Jan 1970 00:00:00 GMT"), Some(0));
        assert_eq!(http_date(" Tue, 29 Feb 2000 00:00:00 GMT"), Some(951_782_400));
        assert_eq!(http_date("Fri, 15 Jan 2027 08:00:00 GMT"), Some(1_800_000_000));
        for wrong in ["", "now", "Tue, 30 Feb 2000 00:00:00 GMT", "Tue, 29 Feb 2000 00:00:00 CET"] {
            assert_eq!(http_date(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn lengths_are_written_in_their_largest_units() {
        assert_eq!(span(90), "90s");
        assert_eq!(span(300), "5m00s");
        assert_eq!(span(3600), "1h00m");
        assert_eq!(span(-300), "-5m00s");
        assert_eq!(span(86_399), "23h59m");
        assert_eq!(span(172_800), "2d00h");
    }
}
