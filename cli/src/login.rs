//! `rswarm login` and `rswarm logout`: the user's credentials for registries.

use std::io::{IsTerminal as _, Read as _, Write as _};
use std::os::fd::AsFd;

use anyhow::Context as _;
use clap::Args;
use nix::sys::termios::{self, LocalFlags, SetArg, Termios};
use rswarm_api::v1;

use crate::client::{Client, call};
use crate::registry_auth::{ConfigFile, DOCKER_HUB, normal};

#[derive(Debug, Args)]
pub struct LoginArgs {
    #[arg(short, long)]
    username: Option<String>,
    /// Others on this host may see it: --password-stdin is safer
    #[arg(short, long, conflicts_with = "password_stdin")]
    password: Option<String>,
    /// Read the password from standard input
    #[arg(long, requires = "username")]
    password_stdin: bool,
    /// `host[:port]` of the registry
    #[arg(default_value = DOCKER_HUB)]
    server: String,
}

#[derive(Debug, Args)]
pub struct LogoutArgs {
    /// `host[:port]` of the registry
    #[arg(default_value = DOCKER_HUB)]
    server: String,
}

pub async fn login(client: &Client, args: LoginArgs) -> anyhow::Result<()> {
    let registry = normal(&args.server);
    let mut config = ConfigFile::read()?;
    if args.username.is_none()
        && args.password.is_none()
        && let Some(known) = config.get(registry)?
    {
        println!("Authenticating with existing credentials...");
        match check(client, registry, &known).await {
            Ok(_) => return succeeded(),
            Err(error) => eprintln!("{error}"),
        }
    }
    if args.password.is_some() {
        eprintln!("WARNING: --password shows the password to others on this host; use --password-stdin");
    }
    let username = match args.username {
        Some(username) => username,
        None => ask("Username: ", false)?,
    };
    let password = match args.password {
        Some(password) => password,
        None if args.password_stdin => {
            let mut password = String::new();
            std::io::stdin().read_to_string(&mut password).context("cannot read the password")?;
            password.trim_end_matches(['\r', '\n']).to_owned()
        }
        None => ask("Password: ", true)?,
    };
    anyhow::ensure!(!username.is_empty(), "expected a user name, found none");
    anyhow::ensure!(!password.is_empty(), "expected a password, found none");
    let mut auth = v1::RegistryAuth { username, password, ..Default::default() };
    let identity_token = check(client, registry, &auth).await?;
    if !identity_token.is_empty() {
        auth.password.clear();
        auth.identity_token = identity_token;
    }
    if let Some(path) = config.store(registry, &auth)? {
        eprintln!(
            "WARNING: the credential is stored unencrypted in `{}`; a credential helper (credsStore) would keep it safe",
            path.display()
        );
    }
    succeeded()
}

fn succeeded() -> anyhow::Result<()> {
    println!("Login Succeeded");
    Ok(())
}

/// Shows the credential to the registry; gives the identity token to keep instead of the password, if any.
async fn check(client: &Client, registry: &str, auth: &v1::RegistryAuth) -> anyhow::Result<String> {
    let request = v1::CheckLoginRequest { registry: registry.to_owned(), auth: Some(auth.clone()) };
    Ok(call!(client, local.check_login(request))?.identity_token)
}

pub fn logout(args: &LogoutArgs) -> anyhow::Result<()> {
    let registry = normal(&args.server);
    if ConfigFile::read()?.erase(registry)? {
        println!("Removing login credentials for {registry}");
    } else {
        println!("Not logged in to {registry}");
    }
    Ok(())
}

/// Asks at the terminal; what is `secret` is not shown as it is typed.
fn ask(prompt: &str, secret: bool) -> anyhow::Result<String> {
    let stdin = std::io::stdin();
    anyhow::ensure!(
        stdin.is_terminal(),
        "there is no terminal to ask for {} at: give the user name by `--username` and the password on standard input, \
         as in `rswarm login --username NAME --password-stdin HOST < FILE`",
        if secret { "the password" } else { "the user name" }
    );
    let mut stderr = std::io::stderr();
    write!(stderr, "{prompt}")?;
    stderr.flush()?;
    let _hidden = if secret { Some(Hidden::begin()?) } else { None };
    let mut line = String::new();
    stdin.read_line(&mut line).context("cannot read from the terminal")?;
    if secret {
        writeln!(stderr)?;
    }
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

/// The terminal shows nothing of what is typed while this lives.
struct Hidden(Termios);

impl Hidden {
    fn begin() -> anyhow::Result<Hidden> {
        let stdin = std::io::stdin();
        let before = termios::tcgetattr(stdin.as_fd())?;
        let mut without_echo = before.clone();
        without_echo.local_flags.remove(LocalFlags::ECHO);
        termios::tcsetattr(stdin.as_fd(), SetArg::TCSAFLUSH, &without_echo)?;
        Ok(Hidden(before))
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        let _ = termios::tcsetattr(std::io::stdin().as_fd(), SetArg::TCSAFLUSH, &self.0);
    }
}
