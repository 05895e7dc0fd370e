//! Finding the route of a request by its path and method.

use hyper::Method;

use super::error::{Code, Error};
use super::percent;

/// The decoded parameters of a path.
pub type Params = Vec<(String, String)>;

/// Routes by path and method.
#[derive(Debug)]
pub struct Router<R> {
    paths: matchit::Router<Vec<(Method, R)>>,
}

impl<R: Copy> Router<R> {
    /// A router over these methods and paths, with parameters of paths in braces.
    ///
    /// # Errors
    /// When two paths collide.
    pub fn new(routes: impl IntoIterator<Item = (Method, &'static str, R)>) -> Result<Self, matchit::InsertError> {
        let mut by_path: Vec<(&str, Vec<(Method, R)>)> = Vec::new();
        for (method, path, route) in routes {
            match by_path.iter_mut().find(|(known, _)| *known == path) {
                Some((_, routes)) => routes.push((method, route)),
                None => by_path.push((path, vec![(method, route)])),
            }
        }
        let mut paths = matchit::Router::new();
        for (path, routes) in by_path {
            paths.insert(path, routes)?;
        }
        Ok(Self { paths })
    }

    /// The route of a method and path, and the path's parameters. HEAD matches GET.
    ///
    /// # Errors
    /// 404 for an unknown path, 405 for an unsupported method, 400 for parameters with malformed percent-encoding.
    pub fn find(&self, method: &Method, path: &str) -> Result<(R, Params), Error> {
        let found = self
            .paths
            .at(path)
            .map_err(|_| Error::new(Code::NOT_FOUND, "no resource at this path"))?;
        let wanted = if method == Method::HEAD { &Method::GET } else { method };
        let Some((_, route)) = found.value.iter().find(|(method, _)| method == wanted) else {
            let mut allow: Vec<&str> = found.value.iter().map(|(method, _)| method.as_str()).collect();
            if allow.contains(&"GET") {
                allow.push("HEAD");
            }
            let allow = allow.join(", ");
            let mut error = Error::new(
                Code::METHOD_NOT_ALLOWED,
                format!("method not allowed; allowed: {allow}"),
            );
            error.allow = Some(allow.into());
            return Err(error);
        };
        let params = found.params.iter().map(|(key, value)| {
            percent::decode(value)
                .map(|value| (key.to_owned(), value))
                .ok_or_else(|| Error::invalid(key, "must be valid percent-encoded UTF-8 without NUL"))
        });
        Ok((*route, params.collect::<Result<_, _>>()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn router_finds_paths_and_methods_or_refuses() {
        let routes = [
            (Method::GET, "/health"),
            (Method::POST, "/api/messages"),
            (Method::GET, "/api/messages"),
            (Method::GET, "/api/messages/unread-count"),
            (Method::PUT, "/api/messages/{id}/read"),
            (Method::GET, "/api/users/{id}"),
        ];
        let router = Router::new(routes.map(|(method, path)| (method, path, path))).expect("no two paths collide");
        let find = |method: Method, path: &str| {
            router
                .find(&method, path)
                .map_err(|error| (error.code, error.allow.map(String::from)))
        };
        assert_eq!(find(Method::GET, "/health"), Ok(("/health", vec![])));
        assert_eq!(find(Method::HEAD, "/health"), Ok(("/health", vec![])));
        assert_eq!(
            find(Method::GET, "/api/messages/unread-count"),
            Ok(("/api/messages/unread-count", vec![]))
        );
        assert_eq!(
            find(Method::PUT, "/api/messages/a%20b/read"),
            Ok(("/api/messages/{id}/read", vec![("id".into(), "a b".into())]))
        );
        assert_eq!(find(Method::GET, "/nothing"), Err((Code::NOT_FOUND, None)));
        assert_eq!(
            find(Method::DELETE, "/api/messages"),
            Err((Code::METHOD_NOT_ALLOWED, Some("POST, GET, HEAD".into())))
        );
        assert_eq!(find(Method::GET, "/api/users/%zz"), Err((Code::VALIDATION_ERROR, None)));
    }
}
