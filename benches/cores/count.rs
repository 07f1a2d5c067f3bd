//! Does the work of one case so often as it is told, for an instruction counter: `ringmail-cores CASE TIMES`. Without
//! arguments it names the cases.

use ringmail_cores::CASES;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [name, times] = &arguments[..] else {
        CASES.iter().for_each(|case| println!("{}", case.name));
        return ExitCode::SUCCESS;
    };
    let (Some(case), Ok(times)) = (CASES.iter().find(|case| case.name == name), times.parse::<u32>()) else {
        eprintln!("ringmail-cores: no case {name:?}, or {times:?} is no number");
        return ExitCode::from(64);
    };
    let mut work = (case.prepare)();
    // Pools and maps have their size after a few.
    for _ in 0..WARM_TIMES + times {
        work();
    }
    ExitCode::SUCCESS
}

const WARM_TIMES: u32 = 200;
