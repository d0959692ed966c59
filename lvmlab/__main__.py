"""`python -m lvmlab COMMAND` is the command `lvmlab COMMAND`."""

from lvmlab.lab.commands.main import main

if __name__ == "__main__":
    main()
