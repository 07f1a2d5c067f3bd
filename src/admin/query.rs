//! Parameters of a request: `name=value` pairs with percent encoding. No I/O.

/// The parameters, decoded; each is taken at most once.
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    /// Reads what stands behind the `?`; `None` where it is not that.
    pub(super) fn parse(query: Option<&str>) -> Option<Query> {
        let mut pairs: Vec<(String, String)> = Vec::new();
        for pair in query.unwrap_or("").split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=')?;
            let (name, value) = (decoded(name)?, decoded(value)?);
            if pairs.iter().any(|(other, _)| *other == name) {
                return None;
            }
            pairs.push((name, value));
        }
        Some(Query(pairs))
    }

    /// Takes a parameter out.
    pub(super) fn take(&mut self, name: &str) -> Option<String> {
        let at = self.0.iter().position(|(other, _)| other == name)?;
        Some(self.0.remove(at).1)
    }

    /// A parameter that nobody took.
    pub(super) fn left(&self) -> Option<&str> {
        self.0.first().map(|(name, _)| &**name)
    }
}

fn decoded(text: &str) -> Option<String> {
    let mut octets = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, behind)) = rest.split_first() {
        rest = behind;
        octets.push(match first {
            b'+' => b' ',
            b'%' => {
                let (digits, behind) = rest.split_at_checked(2)?;
                rest = behind;
                let digits = std::str::from_utf8(digits).ok().filter(|digits| !digits.starts_with('+'))?;
                u8::from_str_radix(digits, 16).ok()?
            }
            octet => *octet,
        });
    }
    String::from_utf8(octets).ok().filter(|text| !text.contains(char::is_control))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_decoded_or_refused() {
        let mut query = Query::parse(Some("sender=a%2Bb%40c&x=%C3%A9+y")).unwrap();
        assert_eq!(query.take("sender").as_deref(), Some("a+b@c"));
        assert_eq!(query.take("sender"), None);
        assert_eq!(query.left(), Some("x"));
        assert_eq!(query.take("x").as_deref(), Some("é y"));
        assert_eq!(query.left(), None);
        assert!(Query::parse(None).is_some());
        for bad in ["x", "x=%", "x=%1", "x=%zz", "x=%+1", "x=%ff", "x=%0d", "x=1&x=2"] {
            assert!(Query::parse(Some(bad)).is_none(), "{bad}");
        }
    }
}
