import sys
from pathlib import Path
from sede_kernels.training.data.prepare import prepare
from sede_kernels.training.files import data_home
def main():
    print(prepare(sys.argv[2], data_home(), limit=int(sys.argv[3]) if len(sys.argv)>3 else None))
