//! Values as Python's `str()` writes them.
//!
//! The released program puts overridden settings into the name of an experiment's folder through `str()`. A
//! run that shall find (or skip) the folder of another has to spell them alike: `True`, `None`, `2e-05`.

use serde_json::Value;

/// `str(value)`. Lists and objects, which no setting has, come out as JSON.
pub fn str(value: &Value) -> String {
    match value {
        Value::Null => "None".to_owned(),
        Value::Bool(true) => "True".to_owned(),
        Value::Bool(false) => "False".to_owned(),
        Value::Number(number) if number.is_f64() => float(number.as_f64().unwrap_or(f64::NAN)),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// `str()` of a float: the fewest digits that give the number back, in scientific notation below 1e-4 and
/// from 1e16 on.
pub fn float(value: f64) -> String {
    if !value.is_finite() {
        return if value.is_nan() {
            "nan"
        } else if value > 0.0 {
            "inf"
        } else {
            "-inf"
        }
        .to_owned();
    }
    let scientific = format!("{value:e}");
    let Some((digits, exponent)) = scientific.split_once('e') else { return scientific };
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if value != 0.0 && !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{digits}e{sign}{:02}", exponent.abs());
    }
    let plain = value.to_string();
    if plain.contains('.') { plain } else { plain + ".0" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn floats_are_spelled_as_python_spells_them() {
        for (value, expected) in [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (0.002, "0.002"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (2e-5, "2e-05"),
            (1.5e-7, "1.5e-07"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.25e22, "1.25e+22"),
            (1e-100, "1e-100"),
            (0.1 + 0.2, "0.30000000000000004"),
            (250.0, "250.0"),
        ] {
            assert_eq!(float(value), expected);
        }
    }

    #[test]
    fn other_values_too() {
        assert_eq!(str(&json!(null)), "None");
        assert_eq!(str(&json!(true)), "True");
        assert_eq!(str(&json!(50)), "50");
        assert_eq!(str(&json!(50.0)), "50.0");
        assert_eq!(str(&json!("torch.float16")), "torch.float16");
    }
}
